"""Which rank is the reason when a collective runs into its timeout."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from vgg_ddp import hangs
from vgg_ddp.hangs import explain, find_hung_ranks, is_timeout


def fail(rank: int, waited: bool, store: str, found: "multiprocessing.SimpleQueue[list[int] | None]") -> None:
    """One of three ranks, of which rank 1 never says anything."""
    hangs.SECONDS_TO_ANSWER = 2.0
    hangs.SECONDS_TO_TELL = 1.0
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    if rank == 1:
        time.sleep(20)
    found.put(find_hung_ranks(waited))


@pytest.mark.parametrize(
    ("waited", "expected"),
    [({0: True, 2: True}, [1]), ({0: True, 2: False}, [1]), ({0: False, 2: True}, [1]), ({0: False, 2: False}, None)],
)
def test_rank_that_says_nothing_is_found_by_all_others_if_one_waited_for_it(
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


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv operation", True),
        ("Application timeout caused pair closure", True),
        ("Connection closed by peer [127.0.0.1]:50857", False),
    ],
)
def test_timeout_is_told_from_a_lost_connection(message: str, expected: bool) -> None:
    assert is_timeout(RuntimeError(message)) == expected


@pytest.mark.parametrize(("hung", "who"), [([2], "rank 2"), ([0, 3], "ranks 0, 3"), ([], "a rank")])
def test_error_names_the_ranks_the_step_and_the_flag(hung: list[int], who: str) -> None:
    assert str(explain(hung, 41, 600.0)) == (
        f"{who} hung: no answer within 600 s in step 42 (--collective-timeout-seconds)"
    )
