"""The event file, read by TensorBoard itself."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.command import free_port, wait_until
from vgg_ddp.observe.tensorboard import EVENTS_FILE, TAGS, EventFile
from vgg_ddp.run.files import VALIDATION_COLUMNS, Row
from vgg_ddp.run.storage import Folder

MakeRows = Callable[[int], list[Row]]


def ask(url: str) -> Any:
    """The response of a server that may not be ready, or may not have found the run yet."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return json.load(response)
    except OSError:
        return None


def test_tensorboard_reads_every_value_of_every_epoch_once(run: Folder, make_rows: MakeRows) -> None:
    for epochs in (1, 2, 3):
        EventFile(run).write(make_rows(epochs))
    accumulator = EventAccumulator(run.path)
    accumulator.Reload()
    tags = {name: tag for name, tag in TAGS.items() if name not in VALIDATION_COLUMNS}
    assert set(accumulator.Tags()["scalars"]) == set(tags.values())
    for name, tag in tags.items():
        read = [(event.step, event.value, event.wall_time) for event in accumulator.Scalars(tag)]
        assert read == [(row["epoch"], pytest.approx(row[name]), row["time"]) for row in make_rows(3)]


def test_longer_file_starts_with_the_shorter_one(run: Folder, make_rows: MakeRows) -> None:
    EventFile(run).write(make_rows(2))
    shorter = run.read(EVENTS_FILE)
    EventFile(run).write(make_rows(3))
    assert run.read(EVENTS_FILE).startswith(shorter)


def test_file_that_grew_equals_one_written_at_once(run: Folder, make_rows: MakeRows) -> None:
    file = EventFile(run)
    for epochs in (1, 2, 2, 5):
        file.write(make_rows(epochs))
    grown = run.read(EVENTS_FILE)
    EventFile(run).write(make_rows(5))
    assert run.read(EVENTS_FILE) == grown


def test_repeated_epoch_replaces_the_first_one(run: Folder, make_rows: MakeRows) -> None:
    file = EventFile(run)
    file.write(make_rows(3))
    repeated = make_rows(4)
    repeated[2] |= {"loss": 7.0}
    file.write(repeated)
    accumulator = EventAccumulator(run.path)
    accumulator.Reload()
    losses = [event.value for event in accumulator.Scalars(TAGS["loss"])]
    assert losses == [pytest.approx(row["loss"]) for row in repeated]


@pytest.mark.slow
def test_tensorboard_shows_new_epochs_of_a_running_run(run: Folder, make_rows: MakeRows, tmp_path: Path) -> None:
    port = free_port()
    command = [Path(sys.executable).with_name("tensorboard"), "--logdir", tmp_path / "runs", "--port", port]
    command += ["--reload_interval", 1]
    EventFile(run).write(make_rows(1))
    url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=run&tag=accuracy/test"

    def shows(epochs: int) -> bool:
        expected = [[row["time"], row["epoch"], pytest.approx(row["test_accuracy"])] for row in make_rows(epochs)]
        return bool(ask(url) == expected)

    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_until(lambda: shows(1), seconds=60)
            EventFile(run).write(make_rows(2))
            wait_until(lambda: shows(2), seconds=20)
        finally:
            server.terminate()
