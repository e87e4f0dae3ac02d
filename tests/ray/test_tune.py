"""tune.py as a command: trials that are stopped early, killed, interrupted, and resumed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from support.command import PATIENCE, PREDICT, TUNE, main_command, marked_processes, started, wait_until
from vgg_ddp.run.storage import Folder
from vgg_ddp.search_space import Choice
from vgg_ddp.sweep.trials import DONE, Trials

SPACE = (Choice("lr", (0.03, 0.00001, 0.01, 0.3)), Choice("batch_size", (24, 72)))
# What Ray calls the process of a trial while it trains.
TRIAL_PROCESS = "ray::ImplicitFunc"


def saved_trials(sweep: Path) -> Trials:
    trials = Trials(Folder.at(str(sweep)), sweep.name, SPACE)
    trials.load()
    return trials


def predict(tiny_data: Path, run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PREDICT), str(run), "--data", str(tiny_data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_killed_and_interrupted_sweep_is_resumed_to_its_end(tmp_path: Path, tiny_data: Path) -> None:
    flags = ["--search", "grid", "--run-name", "s", "--data", tiny_data, "--epochs", 3, "--recipe", "classic"]
    command = [str(part) for part in (sys.executable, TUNE, "lr=0.03,0.00001,0.01,0.3", "batch-size=24,72", *flags)]
    sweep, log = tmp_path / "runs" / "s", tmp_path / "log"

    def trial_processes() -> list[int]:
        return [pid for pid, line in marked_processes(tmp_path.name).items() if line.startswith(TRIAL_PROCESS)]

    with started(tmp_path, command, log) as process:
        wait_until(lambda: "s-001  running" in log.read_text() and bool(trial_processes()))
        os.kill(trial_processes()[0], signal.SIGKILL)
        wait_until(lambda: "its process died: it is restarted" in log.read_text())
        wait_until(lambda: any(trial.state in DONE for trial in saved_trials(sweep).all))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    output = log.read_text()
    assert "Stopped by SIGINT. Resume with: python ray_app/tune.py --resume s" in output
    assert "Traceback" not in output
    done = [trial.name for trial in saved_trials(sweep).all if trial.state in DONE]

    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    table, _, summary = result.stdout.partition("\nFinished s: ")
    assert not [name for name in done if name in table]
    epochs = re.findall(r"^(s-\d+) +running +(\d/3)", table, re.MULTILINE)
    assert len(epochs) == len(set(epochs)), table
    trials = saved_trials(sweep)
    assert len(trials.all) == 8
    assert {trial.state for trial in trials.all} == {"finished", "stopped early"}
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    best = trials.best()
    assert best is not None
    assert f"best run  {sweep / best.name}" in summary
    assert re.search(
        rf"python ray_app/main\.py .*--batch-size {best.point['batch_size']} .*--lr {best.point['lr']} ", summary
    )
    assert "accuracy" in predict(tiny_data, sweep / best.name).stdout

    stopped = next(trial for trial in trials.all if trial.state == "stopped early")
    without_model = predict(tiny_data, sweep / stopped.name)
    assert without_model.returncode == 2
    assert len(without_model.stderr.splitlines()) == 1
    resume = main_command("--resume", stopped.name, "--storage-path", sweep, "--num-workers", 0)
    assert subprocess.run(resume, cwd=tmp_path, timeout=PATIENCE).returncode == 0
    assert predict(tiny_data, sweep / stopped.name).returncode == 0
