"""The precision chosen for each type of device."""

import itertools
import time
from pathlib import Path

import pytest
import torch

from vgg_ddp.machine.precision import choose_precision, processor_name

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_requested_precision_is_used(wanted: str, device: str) -> None:
    assert choose_precision(wanted, torch.device(device)) == wanted


@pytest.mark.parametrize(
    ("speedup", "expected"), [(0.5, "fp32"), (1.0, "fp32"), (1.1, "fp32"), (1.4, "fp32"), (1.5, "bf16"), (8, "bf16")]
)
def test_cpu_uses_bf16_only_if_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: str
) -> None:
    # A fake clock: matrix products alternately take `speedup` seconds (fp32) and one second (bf16).
    ticks = itertools.accumulate(itertools.cycle([0.0, speedup, 0.0, 1.0]))
    monkeypatch.setattr(time, "thread_time", lambda: next(ticks))
    assert choose_precision("auto", CPU) == expected


def test_timing_the_cpu_does_not_change_torch_settings() -> None:
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    assert choose_precision("auto", CPU) in ("fp32", "bf16")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((10, 0), "bf16")]
)
def test_gpu_uses_bf16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_processor_name_is_the_one_the_system_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processor_name(CPU) in Path("/proc/cpuinfo").read_text()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert processor_name(torch.device("cuda", 1)) == "GPU of cuda:1"
