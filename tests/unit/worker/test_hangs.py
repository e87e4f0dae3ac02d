"""Which ranks are blamed when a collective times out."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from vgg_ddp.worker import hangs
from vgg_ddp.worker.hangs import HungRankError, explain, find_hung_ranks, hung_ranks_named, is_timeout

TIMEOUT = "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv operation"


def fail(rank: int, waited: bool, store: str, found: "multiprocessing.SimpleQueue[list[int] | None]") -> None:
    """One of three ranks; rank 1 never reports."""
    hangs.SECONDS_TO_ANSWER = 2.0
    hangs.SECONDS_TO_REPORT = 1.0
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    if rank == 1:
        time.sleep(20)
    found.put(find_hung_ranks(waited))


@pytest.mark.parametrize(
    ("waited", "expected"),
    [({0: True, 2: True}, [1]), ({0: True, 2: False}, [1]), ({0: False, 2: True}, [1]), ({0: False, 2: False}, None)],
)
def test_all_ranks_find_the_silent_rank_if_any_timed_out(
    waited: dict[int, bool], expected: list[int] | None, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    ranks = [
        context.Process(target=fail, args=(rank, waited.get(rank), tmp_path / "store", found)) for rank in range(3)
    ]
    for rank in ranks:
        rank.start()
    answers = [found.get(), found.get()]
    for rank in ranks:
        rank.kill()
        rank.join()
    assert answers == [expected, expected]


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_collective_error_is_raised_if_the_store_is_not_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dist.distributed_c10d, "_get_default_store")
    with pytest.raises(RuntimeError, match="Timed out waiting 10000ms"), hung_ranks_named(10.0, lambda: 3):
        raise RuntimeError(TIMEOUT)


@pytest.mark.usefixtures("process_group")
def test_no_rank_is_blamed_if_the_store_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class LostStore:
        def set(self, key: str, value: str) -> None:
            raise OSError(f"no connection for {key}={value}")

    monkeypatch.setattr(hangs, "default_store", LostStore)
    assert find_hung_ranks(waited=True) is None


@pytest.mark.usefixtures("process_group")
def test_rank_zero_is_blamed_if_its_store_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    thawed = threading.Event()

    class FrozenStore:
        def set(self, key: str, value: str) -> None:
            assert thawed.wait(60), f"{key}={value}"

    monkeypatch.setattr(hangs, "default_store", FrozenStore)
    monkeypatch.setattr(hangs, "SECONDS_TO_ANSWER", 0.1)
    monkeypatch.setattr(hangs, "STORE_SECONDS", 0.1)
    with pytest.raises(HungRankError, match="rank 0 hung"), hung_ranks_named(10.0, lambda: 3):
        raise RuntimeError(TIMEOUT)
    thawed.set()


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
