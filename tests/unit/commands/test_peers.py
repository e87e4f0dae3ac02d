"""The comparison with other programs, without their packages; slow: the script for torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.peers import measure
from benchmarks.peers.peers import HERE, OURS, PEERS, count_lines
from benchmarks.peers.table import Measured, table, where_behind
from support.command import ROOT, wait_until


def test_scripts_of_all_peers_parse_and_their_lines_are_counted() -> None:
    assert len(list(HERE.glob("*_script.py"))) == len(PEERS)
    assert all(10 < count_lines(name) < 60 for name in PEERS)
    assert all(count_lines(name) == 0 for name in OURS)


def test_lines_of_code_exclude_blank_lines_comments_docstrings_and_the_stopwatch() -> None:
    lines = [
        '"""Two',
        'lines."""',
        "",
        "import os  # counts",
        "# no",
        "def f():",
        '    """No."""',
        "    start_stopwatch(1)",
    ]
    source = "\n".join([*lines, '    x = """a', 'b"""'])
    assert measure.lines_of_code(source) == 4


def test_speed_is_that_of_the_last_epoch_after_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "steps-1").write_text("100.0\n107.0\n110.0\n112.0\n")
    (tmp_path / "steps-2").write_text("101.0\n107.0\n110.0\n112.0\n")
    steps = measure.read_steps(tmp_path)
    assert measure.first_step(steps) == 101.0
    assert measure.images_per_second(steps, epochs=2, num_images=50, global_batch=30) == pytest.approx(10.0)


def test_table_shows_medians_and_names_the_columns_that_are_behind() -> None:
    ours = [Measured(speed, 9.0, 2048.0, 0.5, {}) for speed in (90.0, 300.0, 110.0)]
    peer = [Measured(100.0, 8.0, 4096.0, 0.5, {})]
    shown = table({"ours": ours, "peer": peer}, {"ours": 0, "peer": 40})
    assert shown.splitlines() == [
        "| program | images/s | first step | memory | accuracy | lines |",
        "| --- | --- | --- | --- | --- | --- |",
        "| ours | 110 | 9.0 s | 2,048 MiB | 50.0% | 0 |",
        "| peer | 100 | 8.0 s | 4,096 MiB | 50.0% | 40 |",
    ]
    assert where_behind(ours, peer) == ["first step", "accuracy"]


def test_memory_of_child_processes_counts(tmp_path: Path) -> None:
    child = "import time; x = b'x' * 100_000_000; time.sleep(1.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    watched = measure.watch([sys.executable, "-c", parent], os.environ, tmp_path)
    assert 100e6 < watched.peak_memory_bytes < 200e6


def test_output_of_a_failed_program_is_shown(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such peer"):
        measure.watch([sys.executable, "-c", "import sys; sys.exit('no such peer')"], os.environ, tmp_path)


def test_program_that_hangs_is_ended_with_its_children_and_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SECONDS_TO_END", 0.5)
    ignore = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = f"{ignore}time.sleep(600)"
    parent = f"{ignore}print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); time.sleep(600)"
    with pytest.raises(SystemExit, match="did not end in 1 s"):
        measure.watch([sys.executable, "-c", parent], os.environ, tmp_path, limit_seconds=1)
    pid = int((tmp_path / "log").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    obedient = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(600)"
    with pytest.raises(SystemExit, match="did not end in 1 s"):
        measure.watch([sys.executable, "-c", obedient], os.environ, tmp_path, limit_seconds=1)


def test_missing_packages_are_named_in_one_line(tmp_path: Path) -> None:
    without_packages = tmp_path / "python"
    without_packages.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    without_packages.chmod(0o755)
    command = [sys.executable, "-m", "benchmarks.peers.peers", "--peers-python", str(without_packages)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "torch, torchvision, ray, lightning, accelerate not installed" in result.stderr


@pytest.mark.slow
def test_torchrun_script_trains_and_its_weights_are_tested(tmp_path: Path) -> None:
    from benchmarks.peers.task import Task
    from benchmarks.peers.weights import accuracy_on
    from vgg_ddp.data.dataset import Split

    labels = np.arange(64) % 2
    images = np.repeat(np.where(labels, 200, 50).astype(np.uint8), 32 * 32 * 3).reshape(64, 32, 32, 3)
    np.save(tmp_path / "train_images.npy", images)
    np.save(tmp_path / "train_labels.npy", labels)
    task = Task(str(tmp_path), str(tmp_path), num_classes=2, num_workers=2, batch_size=8, epochs=8)
    environment = os.environ | task.environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'ray_app'}"}
    watched = measure.watch([sys.executable, *PEERS["torchrun"](2)], environment, tmp_path)
    steps = measure.read_steps(tmp_path)
    assert [len(times) for times in steps] == [32, 32]
    assert measure.first_step(steps) > watched.started
    assert accuracy_on(tmp_path, Split(images, labels), 2) > 0.9
