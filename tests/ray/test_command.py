"""The training command, as a user runs it."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.command import (
    MAIN,
    MARK,
    PATIENCE,
    PREDICT,
    main_command,
    marked_processes,
    open_to_the_network,
    run_main,
    run_on_terminal,
    run_torchrun,
    started,
    wait_until,
    where_the_name_is_public,
)

FLAGS = ("--recipe", "classic", "--precision", "fp32", "--lr", 0.02)
RUN_FILES = ["chosen.json", "config.json", "curves.png", "events.out.tfevents", "metrics.csv", "model.safetensors"]
RUN_FILES += ["startup.json"]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@pytest.fixture(scope="module")
def two_worker_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a finished run of two Ray workers, started in an empty folder."""
    cwd = tmp_path_factory.mktemp("two-workers")
    result = run_main("--num-workers", 2, "--data", tiny_data, "--epochs", 2, "--run-name", "ray", *FLAGS, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return cwd / "runs" / "ray", result.stdout


def test_finished_run_leaves_a_complete_run_folder(two_worker_run: tuple[Path, str]) -> None:
    run, _ = two_worker_run
    names = sorted(path.name for path in run.iterdir() if not path.name.startswith((".", "checkpoint")))
    assert names == RUN_FILES
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    # A tenth of the images: at least 10 steps per epoch.
    assert json.loads((run / "config.json").read_text())["batch_size"] == 24


def test_output_names_the_dashboard_the_folder_and_each_epoch(two_worker_run: tuple[Path, str]) -> None:
    run, output = two_worker_run
    assert re.search(r"Dashboard: http://127\.0\.0\.1:\d+", output)
    assert str(run) in output
    assert re.search(r"first step \d+\.\d s after the command", output)
    assert [line.split()[1] for line in output.splitlines() if line.startswith("epoch")] == ["1/2", "2/2"]
    assert "test accuracy" in output


def test_piped_output_has_no_control_characters_and_one_line_per_item(
    two_worker_run: tuple[Path, str],
) -> None:
    _, output = two_worker_run
    assert not CONTROL.search(output)
    first_words = [line.split()[0] for line in output.splitlines() if line]
    expected = ["Data:", "Run:", "Dashboard:", "Workers:", "Training:", "Started:", "epoch", "epoch", "Finished"]
    assert first_words[:9] == expected, output


@pytest.mark.slow
def test_terminal_shows_a_live_progress_bar(tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, "--epochs", 3, "--run-name", "shown", "--profile", "--verbose", *FLAGS)
    code, written = run_on_terminal(main_command("--num-workers", 2, *flags), tmp_path, RAY_COLOR_PREFIX="0")
    assert code == 0, written
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    bars = re.findall(r"epoch (\d)/3 ━\S* step (\d+)/30  ([\d,]+) images/s  loss (\d+\.\d+)  ETA 0:0\d:\d\d", plain)
    assert bars, plain
    steps = [int(step) for _, step, _, _ in bars]
    assert steps == sorted(steps) and len(set(steps)) > 2
    assert len([line for line in plain.splitlines() if re.match(r"epoch \d/3  loss", line)]) == 3
    # The cursor is visible again.
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    # With --verbose: logs of Ray Train and Ray.
    assert "Started training worker group" in plain and "Started a local Ray instance" in plain
    assert "its 10 most expensive operators" in plain and "convolution_backward" in plain
    assert "ERROR" not in plain
    run = tmp_path / "runs" / "shown"
    names = sorted(path.name for path in run.iterdir() if not path.name.startswith((".", "checkpoint")))
    assert names == sorted([*RUN_FILES, "profile.txt", "trace.json.gz"])
    assert json.loads(gzip.decompress((run / "trace.json.gz").read_bytes()))["traceEvents"]


def test_predict_reproduces_the_accuracy_of_training(two_worker_run: tuple[Path, str], tiny_data: Path) -> None:
    run, output = two_worker_run
    command = [sys.executable, str(PREDICT), str(run), "--data", str(tiny_data)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    accuracy = re.search(r"accuracy (\S+%)", result.stdout)
    assert accuracy and f"test accuracy      {accuracy[1]}" in output


def test_torchrun_trains_the_same_weights_as_two_ray_workers(
    two_worker_run: tuple[Path, str], tiny_data: Path, tmp_path: Path
) -> None:
    flags = ["--num-workers", 0, "--data", tiny_data, "--epochs", 2, "--run-name", "torchrun", *FLAGS]
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [str(part) for part in (torchrun, "--nproc-per-node=2", MAIN, *flags)]
    log = tmp_path / "log"
    with started(tmp_path, where_the_name_is_public(command, tmp_path), log) as process:
        wait_until(lambda: "Started:" in log.read_text() or process.poll() is not None)
        # torchrun itself hosts the store of the processes, and listens on all interfaces.
        assert all("/torchrun" in command for command in open_to_the_network(tmp_path.name))
        assert process.wait(PATIENCE) == 0, log.read_text()
    assert (tmp_path / "runs/torchrun/model.safetensors").read_bytes() == (
        two_worker_run[0] / "model.safetensors"
    ).read_bytes()
    assert "Reported metrics" not in log.read_text()


def test_finished_run_is_not_repeated_and_more_epochs_train_it_further(
    two_worker_run: tuple[Path, str], tmp_path: Path
) -> None:
    run, _ = two_worker_run
    shutil.copytree(run, tmp_path / "runs" / "ray")
    again = run_main("--resume", "ray", cwd=tmp_path)
    assert again.returncode == 0
    assert "is already finished" in again.stdout
    # A run started under Ray continues without it.
    further = run_main("--resume", "ray", "--epochs", 3, "--num-workers", 0, cwd=tmp_path)
    assert further.returncode == 0, further.stdout + further.stderr
    assert len((tmp_path / "runs/ray/metrics.csv").read_text().splitlines()) == 4


def test_damaged_checkpoint_is_reported_and_the_previous_one_used(tiny_data: Path, tmp_path: Path) -> None:
    common = ("--num-workers", 0, "--data", tiny_data, "--checkpoint-every-seconds", 0.01, *FLAGS)
    assert run_main(*common, "--epochs", 2, "--run-name", "whole", cwd=tmp_path).returncode == 0
    run = tmp_path / "runs" / "whole"
    reference = (run / "model.safetensors").read_bytes()
    older, newest = sorted(path for path in run.iterdir() if path.name.startswith("checkpoint_"))
    with (newest / "state.pt").open("r+b") as file:
        file.truncate(1000)
    (run / "model.safetensors").unlink()
    result = run_main("--resume", "whole", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{newest.name} is damaged" in result.stderr + result.stdout
    assert "using the previous one" in result.stderr + result.stdout
    assert older.name < newest.name
    assert (run / "model.safetensors").read_bytes() == reference


def interrupt(cwd: Path, signal_number: int, *flags: object) -> tuple[int, str, float]:
    """Signal a run once it trains; return its exit code, its output after that, and the seconds until it exited."""
    command = where_the_name_is_public(main_command(*flags), cwd)
    environment = os.environ | {MARK: cwd.name}
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("Started:"):
                break
        if signal_number == signal.SIGINT:
            assert open_to_the_network(cwd.name) == []
        if signal_number == signal.SIGHUP:
            # A terminal that closes sends it to Ray's processes as well.
            os.killpg(process.pid, signal_number)
        else:
            process.send_signal(signal_number)
        interrupted = time.monotonic()
        output = process.stdout.read()
        code, seconds = process.wait(PATIENCE), time.monotonic() - interrupted
    # Ray's dashboard notices a moment later that its parent has exited.
    wait_until(lambda: not marked_processes(cwd.name), seconds=60)
    return code, output, seconds


@pytest.mark.slow
def test_run_stopped_by_sigterm_and_sighup_ends_in_time_and_resumes_to_the_same_weights(
    two_worker_run: tuple[Path, str], tiny_data: Path, tmp_path: Path
) -> None:
    flags: tuple[object, ...] = ("--num-workers", 2, "--data", tiny_data, "--epochs", 2, "--run-name", "stopped")
    flags += FLAGS
    steps = []
    for signal_number, exit_code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        code, output, seconds = interrupt(tmp_path, signal_number, *flags)
        assert (code, seconds < 30) == (exit_code, True), (output, seconds)
        assert "--resume stopped" in output
        steps += re.findall(r"Stopped after step (\d+)", output)
        flags = ("--resume", "stopped")
    # Under torchrun, which starts faster than Ray, and also trains with two processes.
    resumed = run_torchrun(2, "--resume", "stopped", "--num-workers", 0, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    first, second = map(int, steps)
    assert 0 < first < second and f"Resumed at step {second} " in resumed.stdout
    reference = two_worker_run[0] / "model.safetensors"
    assert (tmp_path / "runs/stopped/model.safetensors").read_bytes() == reference.read_bytes()


@pytest.mark.slow
def test_ctrl_c_ends_a_ray_run_at_once(tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--num-workers", 2, "--data", tiny_data, "--epochs", 2, "--run-name", "stopped", *FLAGS)
    code, output, seconds = interrupt(tmp_path, signal.SIGINT, *flags)
    assert (code, seconds < 5) == (130, True), (output, seconds)
    assert "--resume stopped" in output
