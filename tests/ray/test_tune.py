"""tune.py as a command: trials that are stopped early, killed, interrupted, and resumed."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.command import PATIENCE, PREDICT, TUNE, main_command, marked_processes, started, wait_until
from vgg_ddp.run.storage import Folder
from vgg_ddp.search_space import Choice
from vgg_ddp.sweep.trials import DONE, Trials

# Only the first learning rate learns anything.
SPACE = (Choice("lr", (0.03, 0.00001, 0.00002)), Choice("batch_size", (24, 48)))
COLORS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40))
# What Ray calls the process of a trial while it trains.
TRIAL_PROCESS = "ray::ImplicitFunc"


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 training and 20 test images of four colors, which a good learning rate tells apart after one epoch."""
    folder = tmp_path_factory.mktemp("colors")
    noise = np.random.default_rng(0)
    for split, count in (("train", 160), ("test", 20)):
        rows = []
        for index in range(count):
            pixels = np.array(COLORS[index % 4]) + noise.normal(0, 30, (32, 32, 3))
            file = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
            rows.append({"img": {"bytes": file.getvalue()}, "label": index % 4})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def saved_trials(sweep: Path) -> Trials:
    trials = Trials(Folder.at(str(sweep)), sweep.name, SPACE)
    trials.load()
    return trials


def predict(colors: Path, run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PREDICT), str(run), "--data", str(colors)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_killed_and_interrupted_sweep_is_resumed_to_its_end(tmp_path: Path, colors: Path) -> None:
    flags = ["--search", "grid", "--run-name", "s", "--data", colors, "--epochs", 2, "--recipe", "classic"]
    flags += ["--validation-fraction", 0.2]
    command = [str(part) for part in (sys.executable, TUNE, "lr=0.03,0.00001,0.00002", "batch-size=24,48", *flags)]
    sweep, log = tmp_path / "runs" / "s", tmp_path / "log"

    def trial_processes() -> list[int]:
        return [pid for pid, line in marked_processes(tmp_path.name).items() if line.startswith(TRIAL_PROCESS)]

    with started(tmp_path, command, log) as process:

        def wait_while_running(condition: Callable[[], bool]) -> None:
            wait_until(lambda: condition() or process.poll() is not None)
            assert process.poll() is None, log.read_text()

        wait_while_running(lambda: "s-001  running" in log.read_text() and bool(trial_processes()))
        os.kill(trial_processes()[0], signal.SIGKILL)
        wait_while_running(lambda: "its process died: it is restarted" in log.read_text())
        wait_while_running(lambda: any(trial.state in DONE for trial in saved_trials(sweep).all))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    output = log.read_text()
    assert "Stopped by SIGINT. Resume with: python ray_app/tune.py --resume s" in output
    assert "Traceback" not in output
    done = [trial.name for trial in saved_trials(sweep).all if trial.state in DONE]

    # Each of the other trials starts several processes.
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    table, _, summary = result.stdout.partition("\nFinished s: ")
    assert not [name for name in done if name in table]
    epochs = re.findall(r"^(s-\d+) +running +(\d/2)", table, re.MULTILINE)
    assert len(epochs) == len(set(epochs)), table
    trials = saved_trials(sweep)
    assert len(trials.all) == 6
    assert {trial.state for trial in trials.all} == {"finished", "stopped early"}
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    best = trials.best()
    assert best is not None
    assert f"best run  {sweep / best.name}" in summary
    assert re.search(
        rf"python ray_app/main\.py .*--batch-size {best.point['batch_size']} .*--lr {best.point['lr']} ", summary
    )
    assert "accuracy" in predict(colors, sweep / best.name).stdout

    stopped = next(trial for trial in trials.all if trial.state == "stopped early")
    without_model = predict(colors, sweep / stopped.name)
    assert without_model.returncode == 2
    assert len(without_model.stderr.splitlines()) == 1
    resume = main_command("--resume", stopped.name, "--storage-path", sweep, "--num-workers", 0)
    assert subprocess.run(resume, cwd=tmp_path, timeout=PATIENCE).returncode == 0
    assert predict(colors, sweep / stopped.name).returncode == 0
