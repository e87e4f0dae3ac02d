"""Check and repair the environment that a script was started in, before anything depends on it."""

import getpass
import os
import pwd
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from vgg_ddp.flags import BAD_INPUT, UsageError, print_usage_error
from vgg_ddp.machine.stdout import OutputLostError, outlive_readers

TRAIN_V2 = "RAY_TRAIN_V2_ENABLED"


def prepare_process(output_is_result: bool = False) -> None:
    """Make output and file names reliable. The scripts in ray_app call this first.

    `output_is_result`: the script fails if its standard output cannot be written, for example to a full disk.
    """
    _use_utf8_file_names()
    outlive_readers(output_is_result)


def run_script(main: Callable[[], int], output_is_result: bool = False) -> NoReturn:
    """Prepare this process, call a script's `main`, and exit with its exit code."""
    prepare_process(output_is_result)
    try:
        try:
            exit_code = main()
        finally:
            sys.stdout.flush()
    except OutputLostError as error:
        print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        # Python's shutdown would try to write again.
        os._exit(1)
    sys.exit(exit_code)


def run_driver(main: Callable[[], int]) -> NoReturn:
    """Prepare this process, call the `main` of a script that trains, and exit with its exit code.

    Exits without Python's own shutdown; `main` has already shut down Ray. Python's shutdown would wait for images that
    are still being decoded, could abort while stopping the decoding threads inside C++, and takes a second to free the
    memory of torch and Ray.
    """
    prepare_process()
    try:
        exit_code = main()
    except UsageError as error:
        print_usage_error(error)
        exit_code = BAD_INPUT
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", flush=True)
        exit_code = 128 + signal.SIGINT
    except Exception:
        # Python's shutdown would print the same, but may then abort.
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def check_environment() -> None:
    """Check the working directory, keep it out of the module search path, and name the user if the system does not.

    Raises:
        UsageError: if there is no working directory.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working directory cannot be used ({error.strerror}): if it was deleted, cd to another folder."
        ) from error
    _drop_empty_python_paths()
    _name_user()


def check_ray_settings(starts_cluster: bool) -> None:
    """Check that the environment does not disable what this program needs of Ray.

    Raises:
        UsageError: if it does.
    """
    if sys.flags.optimize > 1:
        raise UsageError(
            "PYTHONOPTIMIZE=2, or python -OO, removes docstrings, which Ray needs: use at most PYTHONOPTIMIZE=1, or "
            "python -O."
        )
    if starts_cluster and "error" in sys.warnoptions:
        raise UsageError("PYTHONWARNINGS=error, or python -W error, turns Ray's own warnings into errors: unset it.")
    value = os.environ.get(TRAIN_V2, "1")
    if value.lower() not in ("1", "true"):
        raise UsageError(f"{TRAIN_V2}={value}: this program needs version 2 of Ray Train; unset the variable.")


def private_folder() -> str | None:
    """A temporary folder with a short path that belongs to this user; None if there cannot be one."""
    folder = f"/tmp/vgg-ddp-{os.getuid()}"
    try:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
    except OSError:
        return None
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() else None


def _use_utf8_file_names() -> None:
    """Restart this script in Python's UTF-8 mode if file names have another encoding.

    Otherwise, Python and pyarrow would write the same name differently. Ray's processes inherit the mode.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _drop_empty_python_paths() -> None:
    """Drop the working directory from the module search path if it is there by accident.

    Each empty entry of PYTHONPATH stands for the working directory; `export PYTHONPATH=$PYTHONPATH:/mine` adds one if
    the variable was unset. A file like numpy.py there would replace the package of that name.
    """
    paths = os.environ.get("PYTHONPATH")
    if not paths or sys.flags.ignore_environment or all(paths.split(os.pathsep)):
        return
    wanted = [path for path in paths.split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(wanted)
    # Python lists each folder once.
    here = os.path.abspath("")
    if here in sys.path[1:] and here not in map(os.path.abspath, wanted):
        sys.path.remove(here)


def _name_user() -> None:
    """Set HOME and USER if neither the environment nor the system knows this user, as in `docker run --user 12345`.

    HOME may be a folder that this user cannot write.
    """
    if not os.environ.get("HOME"):
        try:
            os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            # As Docker does.
            os.environ["HOME"] = "/"
    if not os.access(os.environ["HOME"], os.W_OK) and (folder := private_folder()):
        # Otherwise, matplotlib warns and rebuilds its cache every time.
        os.environ.setdefault("MPLCONFIGDIR", folder)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
