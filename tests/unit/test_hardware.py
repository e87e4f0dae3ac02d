"""Which precision is chosen for a device."""

import itertools
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vgg_ddp.hardware import choose_precision, processor_name
from vgg_ddp.train import is_same_on_all_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_precision_that_is_asked_for_is_taken(wanted: str, device: str) -> None:
    assert choose_precision(wanted, torch.device(device)) == wanted


@pytest.mark.parametrize(
    ("speedup", "expected"), [(0.5, "fp32"), (1.0, "fp32"), (1.1, "fp32"), (1.5, "bf16"), (8, "bf16")]
)
def test_processor_gets_bf16_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: str
) -> None:
    # A clock on which products of fp32 and bf16 matrices, timed in turn, take so long.
    ticks = itertools.accumulate(itertools.cycle([0.0, speedup, 0.0, 1.0]))
    monkeypatch.setattr(time, "thread_time", lambda: next(ticks))
    assert choose_precision("auto", CPU) == expected


def test_timing_the_processor_leaves_torch_as_it_was() -> None:
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    assert choose_precision("auto", CPU) in ("fp32", "bf16")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((10, 0), "bf16")]
)
def test_gpu_gets_bf16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_processor_is_named_as_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processor_name(CPU) in Path("/proc/cpuinfo").read_text()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert processor_name(torch.device("cuda", 1)) == "GPU of cuda:1"


def compare_on_a_rank(rank: int, folder: str) -> None:
    """Compare what both ranks have in common, then what they have not, and store both answers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    answers = [is_same_on_all_ranks("a processor"), is_same_on_all_ranks(f"processor {rank}")]
    torch.save(answers, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_of_two_kinds_of_processors_know_it(tmp_path: Path) -> None:
    mp.spawn(compare_on_a_rank, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [[True, False]] * 2
    assert is_same_on_all_ranks("alone")
