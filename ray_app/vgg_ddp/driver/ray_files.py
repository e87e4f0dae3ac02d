"""The files that Ray needs to start on this machine: a folder for its sockets and logs, and a token."""

import os
import secrets
import sys
from pathlib import Path

from vgg_ddp.flags import UsageError
from vgg_ddp.machine.environment import private_folder

TEMPORARY, TOKEN, TOKEN_FILE, TOKEN_MODE = "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
# The longest path of a Unix socket.
MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
# The longest that Ray appends to its temporary folder, with the largest process ID.
LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_TaskEventsHead"
MAX_FOLDER_BYTES = MAX_SOCKET_BYTES - len(LONGEST_SOCKET) - 1
# Python's multiprocessing, which Ray's dashboard uses, has sockets in TMPDIR.
MAX_TMPDIR_BYTES = MAX_SOCKET_BYTES - len("/pymp-01234567/listener-01234567")


def choose_temporary_folder() -> None:
    """Make sure that Ray can use its temporary folder: RAY_TMPDIR, else TMPDIR, else /tmp.

    If RAY_TMPDIR is unset and the others are unsuitable, set it to a private folder in /tmp. If TMPDIR is too long, set
    it to the same folder.

    Raises:
        UsageError: if RAY_TMPDIR is unsuitable, or no folder is suitable.
    """
    if chosen := os.environ.get(TEMPORARY):
        # Ray's processes may have another working directory.
        os.environ[TEMPORARY] = os.path.abspath(chosen)
        if problem := _problem(os.environ[TEMPORARY]):
            raise UsageError(
                f"{TEMPORARY}={chosen}: {problem}; choose a short path that you can write to, such as /tmp."
            )
    else:
        # Ray would use an empty value as it is.
        os.environ.pop(TEMPORARY, None)
        _replace_unsuitable_folder()
    if len(os.fsencode(os.environ.get("TMPDIR", ""))) > MAX_TMPDIR_BYTES:
        os.environ["TMPDIR"] = os.environ.get(TEMPORARY, "/tmp")


def _replace_unsuitable_folder() -> None:
    usual = (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    problem = _problem(usual) if os.path.isabs(usual) else "it is not an absolute path"
    if not problem:
        return
    private = private_folder()
    if private is None or _problem(private):
        raise UsageError(
            f"Ray cannot use {usual} for its temporary files: {problem}; set {TEMPORARY} to a short path that you can "
            "write to."
        )
    print(f"NOTE: Ray cannot use {usual} for its temporary files: {problem}; using {private}.")
    os.environ[TEMPORARY] = private


def _problem(folder: str) -> str | None:
    """Why Ray cannot use this temporary folder, in which it creates the folder `ray`; None if it can."""
    size_bytes = len(os.fsencode(folder))
    if size_bytes > MAX_FOLDER_BYTES:
        return f"it has {size_bytes} bytes, but the paths of Ray's sockets allow at most {MAX_FOLDER_BYTES}"
    own = Path(folder, "ray")
    try:
        if not Path(folder).exists():
            Path(folder).mkdir(0o700, parents=True)
        own.mkdir(exist_ok=True)
    except OSError as error:
        return f"{error.filename} cannot be created ({error.strerror})"
    return None if os.access(own, os.W_OK | os.X_OK) else f"{own} cannot be written by this user"


def provide_token() -> None:
    """Make sure that Ray finds or can store the token that protects the cluster; otherwise, make one for this run.

    Ray takes it from RAY_AUTH_TOKEN, from the file RAY_AUTH_TOKEN_PATH, or from ~/.ray/auth_token, which it creates.

    Raises:
        UsageError: if a variable of Ray's names a file without a token, or an unknown mode.
    """
    mode = os.environ.get(TOKEN_MODE, "token")
    if mode.lower() not in ("token", "disabled"):
        # Ray would not protect the cluster.
        raise UsageError(f"{TOKEN_MODE}={mode}: expected token or disabled.")
    if mode.lower() == "disabled" or os.environ.get(TOKEN):
        return
    if file := os.environ.get(TOKEN_FILE):
        if problem := _unreadable(file):
            raise UsageError(f"{TOKEN_FILE}={file}: {problem}; correct the variable, or unset it.")
        return
    home = os.path.expanduser("~")
    file = os.path.join(home, ".ray", "auth_token")
    if not _unreadable(file):
        return
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        # Ray replaces an empty file.
        open(file, "a").close()
    except OSError as error:
        os.environ[TOKEN] = secrets.token_hex(32)
        print(
            f"NOTE: HOME={home}: {file} cannot be written ({error.strerror}), so this cluster gets a token that is not "
            f"stored. To open its dashboard, set {TOKEN} to a token of your own."
        )


def _unreadable(file: str) -> str | None:
    """Why this file has no token; None if it has one."""
    try:
        return None if Path(file).read_bytes().strip() else "the file is empty"
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
