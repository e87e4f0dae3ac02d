"""Which ranks are blamed when the ranks no longer come together, and how their wait ends."""

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from support.command import free_port
from vgg_ddp.worker import hangs, reports
from vgg_ddp.worker.hangs import HangMonitor, HungRankError, explain, hung_ranks_named, is_timeout
from vgg_ddp.worker.reports import Report, find_hung

TIMEOUT = "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv operation"
# Of the monitors in these tests, in seconds.
HUNG_AFTER = 1.5
ANSWER = 1.5


def meet(monitor: HangMonitor) -> None:
    monitor.arrive()
    dist.all_reduce(torch.ones(1))


def have_fault(fault: str, monitor: HangMonitor) -> None:
    """What one rank does instead of meeting the others."""
    if fault in ("stopped", "killed"):
        os.kill(os.getpid(), signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)
    if fault == "busy":
        for _ in range(int(HUNG_AFTER / 0.1) + 5):
            monitor.beat()
            time.sleep(0.1)
    if fault == "asleep":
        time.sleep(60)
    if fault == "failed":
        raise ZeroDivisionError("a fault in the code")


def train(rank: int, faults: dict[int, str], port: int, folder: Path) -> None:
    """One of three ranks; writes how its loop ended, or what its monitor printed, to a file named after the rank."""
    sys.stderr = (folder / f"{rank}").open("w")
    reports.SECONDS_TO_ANSWER = hangs.SECONDS_TO_ANSWER = ANSWER
    hangs.SECONDS_BETWEEN_REPORTS, hangs.SECONDS_TO_LEAVE = 0.2, {"gloo": 2 * ANSWER}
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    monitor = HangMonitor(HUNG_AFTER)
    try:
        with hung_ranks_named(monitor, lambda: 41):
            meet(monitor)
            # A fault in all ranks is one in the same place.
            if len(faults) == 3:
                monitor.arrive()
            have_fault(faults.get(rank, ""), monitor)
            meet(monitor)
        ending = "finished"
    except (HungRankError, RuntimeError, ZeroDivisionError) as error:
        ending = str(error)
    print(ending, file=sys.stderr, flush=True)
    os._exit(0)


def run(faults: dict[int, str], folder: Path, expected: int) -> tuple[list[str], float]:
    """How the first `expected` of three ranks end, one line per rank, and after how many seconds; kill the others."""
    # Forked from a process without other threads: a fork of this one could wait forever for a lock of such a thread.
    context, port = multiprocessing.get_context("forkserver"), free_port()
    # The server imports torch once, for all ranks of all tests.
    context.set_forkserver_preload(["torch.distributed"])
    ranks = [context.Process(target=train, args=(rank, faults, port, folder)) for rank in range(3)]
    started = time.monotonic()
    for process in ranks:
        process.start()
    while sum(process.exitcode is not None for process in ranks) < expected and time.monotonic() < started + 40:
        time.sleep(0.05)
    seconds = time.monotonic() - started
    for process in ranks:
        process.kill()
        process.join()
    return [(folder / f"{rank}").read_text().strip() for rank in range(3)], seconds


@pytest.mark.parametrize(
    ("faults", "named", "healthy"),
    [
        # The store is in rank 0's process.
        ({0: "stopped"}, "rank 0", (1, 2)),
        ({1: "stopped"}, "rank 1", (0, 2)),
        ({1: "asleep", 2: "asleep"}, "ranks 1, 2", (0,)),
    ],
)
def test_healthy_ranks_name_the_silent_ranks_else_those_that_are_behind(
    faults: dict[int, str], named: str, healthy: tuple[int, ...], tmp_path: Path
) -> None:
    endings, _ = run(faults, tmp_path, expected=len(healthy))
    message = f"{named} hung: no answer within 1.5 s in step 42 (--collective-timeout-seconds)"
    assert [endings[rank] for rank in healthy] == [message] * len(healthy)


def test_ranks_that_hang_in_the_same_place_have_twice_the_time_and_their_processes_end(tmp_path: Path) -> None:
    endings, seconds = run(dict.fromkeys(range(3), "asleep"), tmp_path, expected=3)
    # Printed by the monitors: the training loops are still asleep.
    assert endings == ["error: a rank hung: no answer within 1.5 s in step 42 (--collective-timeout-seconds)"] * 3
    assert seconds > 2 * HUNG_AFTER + 2 * ANSWER


def test_rank_that_shows_that_it_is_alive_is_waited_for(tmp_path: Path) -> None:
    endings, seconds = run({1: "busy"}, tmp_path, expected=3)
    assert endings == ["finished"] * 3
    assert seconds > HUNG_AFTER


@pytest.mark.parametrize("fault", ["killed", "failed"])
def test_rank_that_ends_is_not_called_hung(fault: str, tmp_path: Path) -> None:
    endings, seconds = run({1: fault}, tmp_path, expected=3)
    assert all(re.search("Connection (closed|reset) by peer", endings[rank]) for rank in (0, 2))
    assert endings[1] == ("a fault in the code" if fault == "failed" else "")
    assert seconds < HUNG_AFTER + 2


NOW = 1000.0


def report(position: int, idle_seconds: float, age: float = 0.0, is_answer: bool = True) -> Report:
    return Report(position, idle_seconds, b"", NOW - age, is_answer)


@pytest.mark.parametrize(
    ("ranks", "must", "expected"),
    [
        # Rank 1 has not answered yet, then does not answer at all.
        ([report(5, 11), report(4, 99, age=9, is_answer=False)], False, None),
        ([report(5, 11), report(4, 99, age=10, is_answer=False)], False, [1]),
        # It has answered once, and stopped answering.
        ([report(5, 11), report(5, 11, age=10)], False, [1]),
        ([report(5, 11), report(4, 12)], False, [1]),
        ([report(5, 11), report(5, 11)], False, None),
        ([report(5, 20), report(5, 20)], False, []),
        # Rank 1 moves, but a collective has timed out.
        ([report(5, 20), report(4, 3)], False, None),
        ([report(5, 20), report(4, 3)], True, [1]),
        ([report(5, 11), report(5, 11)], True, []),
    ],
)
def test_silent_ranks_are_blamed_first_then_those_behind(
    ranks: list[Report], must: bool, expected: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: NOW)
    assert find_hung(dict(enumerate(ranks)), timeout_seconds=10, must=must) == expected


def test_report_is_an_answer_once_it_has_changed() -> None:
    first = Report.read(b"3 0.5 1", None, now=1.0)
    assert (first.position, first.idle_seconds, first.changed_at, first.is_answer) == (3, 0.5, 1.0, False)
    assert Report.read(b"3 0.5 1", first, now=2.0) == first
    second = Report.read(b"3 1.5 2", first, now=3.0)
    assert (second.idle_seconds, second.changed_at, second.is_answer) == (1.5, 3.0, True)
    # Nothing was written so far.
    assert not Report.read(b"", None, now=1.0).is_answer


def test_no_monitor_watches_without_a_process_group() -> None:
    monitor = HangMonitor(0.1)
    with hung_ranks_named(monitor, lambda: 0):
        time.sleep(1.0)
    monitor.check()


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_single_rank_waits_for_nobody() -> None:
    monitor = HangMonitor(0.1)
    with pytest.raises(RuntimeError, match="Timed out waiting 10000ms"), hung_ranks_named(monitor, lambda: 3):
        raise RuntimeError(TIMEOUT)


def test_rank_whose_wait_was_ended_does_not_continue() -> None:
    monitor = HangMonitor(10.0)
    monitor.error = explain([1], 3, 10.0)
    for continue_ in (monitor.arrive, monitor.check):
        with pytest.raises(HungRankError, match="rank 1 hung"):
            continue_()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (TIMEOUT, True),
        ("Application timeout caused pair closure", True),
        ("Connection closed by peer [127.0.0.1]:50857", False),
    ],
)
def test_timeout_is_distinguished_from_a_lost_connection(message: str, expected: bool) -> None:
    assert is_timeout(RuntimeError(message)) == expected


@pytest.mark.parametrize(("hung", "who"), [([2], "rank 2"), ([0, 3], "ranks 0, 3"), ([], "a rank")])
def test_error_names_the_ranks_the_step_and_the_flag(hung: list[int], who: str) -> None:
    assert str(explain(hung, 41, 600.0)) == (
        f"{who} hung: no answer within 600 s in step 42 (--collective-timeout-seconds)"
    )
