"""What the processor or GPU of a worker can do."""

import platform
import time
from pathlib import Path

import torch

# bf16 rounds coarsely: it has to be worth that.
WORTHWHILE_SPEEDUP = 1.5
MATRIX_SIZE = 512


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32 or bf16: as wanted, and for auto bf16 where the hardware multiplies bf16 matrices clearly faster.

    Processors are timed for that (some 50 ms), since their feature flags do not tell: with AVX512-BF16 but no AMX,
    AMD's Zen 4 runs twice as fast in bf16 as in fp32, and Intel's Sapphire Rapids half as fast.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    seconds = _matmul_seconds((torch.float32, torch.bfloat16))
    return "bf16" if seconds[torch.float32] >= WORTHWHILE_SPEEDUP * seconds[torch.bfloat16] else "fp32"


def processor_name(device: torch.device) -> str:
    """The kind of GPU or processor that a worker computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # Arm has no name there, and macOS no such file.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _matmul_seconds(dtypes: tuple[torch.dtype, ...]) -> dict[torch.dtype, float]:
    """Processor time of a matrix product of each type on one thread, which other processes do not lengthen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = dict.fromkeys(dtypes, float("inf"))
    # In turn, so that a change of the processor's clock hits all alike.
    for _ in range(6):
        for dtype in dtypes:
            matrix = torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype)
            started = time.thread_time()
            matrix @ matrix
            best[dtype] = min(best[dtype], time.thread_time() - started)
    torch.set_num_threads(threads)
    return best
