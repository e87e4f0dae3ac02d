"""Environments that other people's machines have: each works, or ends with one line that names what to change."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.command import (
    COMPARE,
    MAIN,
    PATIENCE,
    PREDICT,
    PREPARE,
    free_port,
    main_command,
    started,
    wait_until,
)

RAY, ALONE = ("--num-workers", 2), ("--num-workers", 0)
SHORT = ("--recipe", "classic", "--precision", "fp32", "--epochs", 1, "--run-name", "run")
# Another user: one that the system does not know, and that may not write where root may.
STRANGER = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
GROUP = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LONG = "x" * 90

# Variables, flags, and what the line says.
REFUSED: dict[str, tuple[dict[str, str], Sequence[object], str]] = {
    "RAY_TMPDIR too long": ({"RAY_TMPDIR": f"/tmp/{LONG}"}, RAY, "RAY_TMPDIR=/tmp/x+: it has 95 bytes, but"),
    "RAY_TMPDIR not writable": ({"RAY_TMPDIR": "/proc"}, RAY, "RAY_TMPDIR=/proc: /proc/ray cannot be created"),
    "RAY_TMPDIR missing": ({"RAY_TMPDIR": "/proc/no"}, RAY, "RAY_TMPDIR=/proc/no: /proc/no cannot be created"),
    "RAY_AUTH_MODE unknown": ({"RAY_AUTH_MODE": "no"}, RAY, "RAY_AUTH_MODE=no: expected token or disabled"),
    "token file missing": ({"RAY_AUTH_TOKEN_PATH": "/no"}, RAY, "RAY_AUTH_TOKEN_PATH=/no: the file cannot be read"),
    "token file empty": ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, RAY, "RAY_AUTH_TOKEN_PATH=.*: the file is empty"),
    "RAY_ADDRESS dead": ({"RAY_ADDRESS": "127.0.0.1:1"}, RAY, "RAY_ADDRESS=127.0.0.1:1: nothing answers there"),
    "RAY_ADDRESS dead, auto": ({"RAY_ADDRESS": "127.0.0.1:1"}, (*RAY, "--address", "auto"), "RAY_ADDRESS=127.0.0.1:1"),
    "RAY_ADDRESS of a client": ({"RAY_ADDRESS": "ray://head:1"}, RAY, "RAY_ADDRESS=ray://head:1: expected HOST:PORT"),
    "flag before RAY_ADDRESS": ({"RAY_ADDRESS": "no:1"}, (*RAY, "--address", "127.0.0.1:1"), "--address 127.0.0.1:1:"),
    "old Ray Train": ({"RAY_TRAIN_V2_ENABLED": "0"}, RAY, "RAY_TRAIN_V2_ENABLED=0: this program needs version 2"),
    "old Ray Train, alone": ({"RAY_TRAIN_V2_ENABLED": "false"}, ALONE, "RAY_TRAIN_V2_ENABLED=false: "),
    "no docstrings": ({"PYTHONOPTIMIZE": "2"}, RAY, "PYTHONOPTIMIZE=2, or python -OO, removes docstrings"),
    "warnings are errors": ({"PYTHONWARNINGS": "error"}, RAY, "PYTHONWARNINGS=error, or python -W error"),
    "RANK only": ({"RANK": "1"}, ALONE, "RANK=1 is set, but not LOCAL_RANK WORLD_SIZE .* MASTER_PORT"),
    "WORLD_SIZE only": ({"WORLD_SIZE": "4"}, ALONE, "WORLD_SIZE=4 is set, but not RANK"),
    "RANK not a number": ({"RANK": "one"}, RAY, "RANK=one: expected a number"),
    "no MASTER_PORT": (GROUP, ALONE, ".* LOCAL_WORLD_SIZE=2 is set, but not MASTER_PORT:"),
    "rank beyond the group": (GROUP | {"RANK": "2", "MASTER_PORT": "1"}, ALONE, "RANK=2 .*: these values contradict"),
    "group and Ray": (GROUP | {"MASTER_PORT": "1"}, RAY, "RANK=0 .*: another launcher .*--num-workers 2"),
    "torchrun's ID only": ({"TORCHELASTIC_RUN_ID": "no"}, (), "TORCHELASTIC_RUN_ID is set, but not RANK"),
}


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def run(command: Sequence[object], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is read as UTF-8."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("case", REFUSED)
def test_unsuitable_environment_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    variables, flags, expected = REFUSED[case]
    error = one_line(run(main_command("--data", "sample", *flags), tmp_path, **variables))
    assert re.match(f"error: {expected}", error), error
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("script", [MAIN, PREDICT, PREPARE, COMPARE])
def test_deleted_working_directory_is_named_in_one_line(script: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [sys.executable, "-c", "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"]
    error = one_line(run([*command, sys.executable, script, "a", "b"], gone))
    assert error.startswith("error: the working directory cannot be used (No such file or directory)")


@pytest.mark.parametrize("script", [MAIN, PREDICT, PREPARE, COMPARE])
def test_scripts_find_their_package_in_safe_path_mode(script: Path, tmp_path: Path) -> None:
    shown = run([sys.executable, script, "--help"], tmp_path, PYTHONSAFEPATH="1", PYTHONOPTIMIZE="2", COLUMNS="1")
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("variables", [ASCII, {"PYTHONIOENCODING": "ascii:strict"}, {"PYTHONIOENCODING": "latin-1"}])
@pytest.mark.parametrize(
    "arguments",
    [(MAIN, "--data", "кл", *ALONE), (PREDICT, "кл", "a.png"), (PREPARE, "кл", "out"), (COMPARE, "кл", "другой")],
)
def test_names_that_the_terminal_cannot_show_are_escaped(
    arguments: Sequence[object], variables: dict[str, str], tmp_path: Path
) -> None:
    error = one_line(run([sys.executable, *arguments], tmp_path, **variables))
    # In Python's UTF-8 mode, the output is UTF-8.
    assert ("кл" if variables == ASCII else r"\u043a\u043b") in error


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", [f"{MAIN} --num-workers 0 --data no", f"{PREDICT} no a.png", f"{COMPARE} a b"])
def test_closed_streams_do_not_change_the_exit_code(arguments: str, closed: str, tmp_path: Path) -> None:
    result = run(["bash", "-c", f"exec {sys.executable} {arguments} {closed}"], tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == (0 if "2>" in closed else 1)


def skip_without_namespaces() -> None:
    if not shutil.which("unshare") or subprocess.run([*STRANGER, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow user namespaces")


def test_folders_of_another_user_are_named_in_one_line(tmp_path: Path) -> None:
    skip_without_namespaces()
    other = tmp_path / "ray"
    other.mkdir(mode=0o555)
    short = Path(os.environ["HOME"], "other")
    short.symlink_to(tmp_path)
    command = [*STRANGER, *main_command("--data", "sample", *RAY)]
    error = one_line(run(command, tmp_path, RAY_TMPDIR=str(short)))
    assert f"RAY_TMPDIR={short}: {short}/ray cannot be written by this user" in error
    readable = tmp_path / "readable"
    readable.mkdir(mode=0o555)
    command = [*STRANGER, *main_command("--data", "sample", *ALONE)]
    assert "--storage-path" in one_line(run(command, readable))
    command = [*STRANGER, sys.executable, PREPARE, "a", "b"]
    assert one_line(run(command, readable))


def trap(folder: Path) -> None:
    """Put files into a folder that must not be imported: another checkout's package, and names of other packages."""
    (folder / "vgg_ddp").mkdir(parents=True)
    for file in ("vgg_ddp/__init__.py", "numpy.py", "torch.py", "ray.py"):
        (folder / file).write_text(f"raise RuntimeError('{file} of another folder was imported')")


@pytest.mark.slow
def test_run_works_for_an_unknown_user_with_everything_unusual(tiny_data: Path, tmp_path: Path) -> None:
    """No home, no name, no short TMPDIR, no UTF-8, `uv run`, other modules in the working directory, and so on."""
    skip_without_namespaces()
    trap(tmp_path)
    (tmp_path / "данные").symlink_to(tiny_data)
    long = tmp_path / LONG
    long.mkdir()
    # Ray looks for a parent with this command line.
    (tmp_path / "uv").symlink_to("/bin/bash")
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    unusual = {"HOME": "/proc", "TMPDIR": str(long), "RAY_TMPDIR": "", "PYTHONSAFEPATH": "1", "PYTHONPATH": ":"}
    unusual |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    # Left over from a launcher of one process.
    unusual |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "nowhere.invalid"}
    unset = ["env", "-u", "USER", "-u", "LOGNAME"]
    flags = (*RAY, "--data", "данные", *SHORT)
    command = [*STRANGER, *unset, "bash", "-c", 'umask 077; exec "$@"', "-", tmp_path / "uv", "run"]
    result = run([*command, *main_command(*flags)], tmp_path, **unusual, **ASCII)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "NOTE: HOME=/proc: /proc/.ray/auth_token cannot be written" in result.stdout
    assert f"Data:      {tmp_path}/данные: 240 training" in result.stdout
    assert (tmp_path / "runs/run/model.safetensors").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_workers_of_an_existing_cluster_run_the_code_of_the_driver(
    tiny_data: Path, private_home: Path, tmp_path: Path
) -> None:
    """The cluster was started from another checkout, the run is started in another one, and its streams are closed."""
    (tmp_path / "cluster").mkdir()
    trap(tmp_path / "driver")
    shutil.copytree(tmp_path / "driver/vgg_ddp", tmp_path / "older/vgg_ddp")
    port = free_port()
    start = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    start += ["--include-dashboard=false", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    older = {"PYTHONPATH": str(tmp_path / "older"), "RAY_AUTH_MODE": "disabled"}
    # Ray leaves the address of a killed cluster there, which other tests would find.
    older["RAY_TMPDIR"] = str(private_home / "other")
    log = tmp_path / "log"
    with started(tmp_path / "cluster", list(map(str, start)), log, **older):
        wait_until(lambda: "Ray runtime started" in log.read_text())
        flags = (*RAY, "--address", f"127.0.0.1:{port}", "--data", tiny_data, *SHORT)
        command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *main_command(*flags)]
        result = run(command, tmp_path / "driver", RAY_AUTH_MODE="disabled")
        assert result.returncode == 0, log.read_text()
        assert (tmp_path / "driver/runs/run/model.safetensors").exists()


def test_ranks_with_different_code_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(MAIN.parent, other, ignore=shutil.ignore_patterns("sample", "__pycache__"))
    with (other / "vgg_ddp/model/vgg.py").open("a") as file:
        file.write("# A change.\n")
    group = GROUP | {"MASTER_PORT": str(free_port())}
    command = main_command(*ALONE, "--data", tiny_data, *SHORT)
    with (
        started(tmp_path, command, **group) as first,
        started(
            tmp_path, [command[0], str(other / "main.py"), *command[2:]], **group | {"RANK": "1", "LOCAL_RANK": "1"}
        ),
    ):
        output, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 2, output
    assert re.search(
        rf"error: rank 1 runs the code in {other}/vgg_ddp on \S+, which differs from the driver's in "
        rf"{MAIN.parent}/vgg_ddp on ",
        output,
    ), output


def test_signal_of_a_closing_terminal_is_ignored_under_nohup(tiny_data: Path, tmp_path: Path) -> None:
    command = ["nohup", *main_command(*ALONE, "--data", tiny_data, *SHORT)]
    with started(tmp_path, command) as process:
        wait_until(lambda: (tmp_path / "runs/run/startup.json").exists())
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output


def test_unexpected_exception_ends_with_a_traceback_and_exit_code_1(tiny_data: Path, tmp_path: Path) -> None:
    # Ray cannot import its hook.
    result = run(main_command(*RAY, "--data", tiny_data), tmp_path, RAY_RUNTIME_ENV_HOOK="no.such.hook")
    assert result.returncode == 1, result.stderr
    assert result.stderr.rstrip().endswith("ModuleNotFoundError: No module named 'no'")
