"""Choose the precision that is fast on the processor or GPU."""

import platform
import time
from pathlib import Path

import torch

# bf16 rounds coarsely, so it must be clearly faster.
MIN_SPEEDUP = 1.5
MATRIX_SIZE = 512
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return `wanted`, or for auto, bf16 if the hardware multiplies matrices clearly faster in it, and fp32 otherwise.

    CPUs are timed (about 50 ms), because their feature flags do not predict the speed: with AVX512-BF16 but no AMX,
    AMD's Zen 4 is twice as fast in bf16 as in fp32, and Intel's Sapphire Rapids half as fast.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    seconds = _matmul_seconds((torch.float32, torch.bfloat16))
    return "bf16" if seconds[torch.float32] >= MIN_SPEEDUP * seconds[torch.bfloat16] else "fp32"


def has_tf32(device: torch.device) -> bool:
    """Whether the device is a GPU that can multiply fp32 numbers in TF32, which is several times faster.

    TF32 rounds the factors to 10 bits, and sums in fp32.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def prepare_gpu(device: torch.device) -> None:
    """Make this thread use a GPU: on a stream of its own, and in TF32 if the GPU supports that."""
    torch.cuda.set_device(device)
    # CUDA graphs cannot be captured on the default stream, and must be captured on the one that DDP was created on.
    torch.cuda.set_stream(torch.cuda.Stream(device))
    if has_tf32(device):
        torch.set_float32_matmul_precision("high")


def processor_name(device: torch.device) -> str:
    """The model name of a worker's GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # On Arm the file has no model name, and macOS has no such file.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _matmul_seconds(dtypes: tuple[torch.dtype, ...]) -> dict[torch.dtype, float]:
    """CPU time of a matrix product in each type, on one thread; independent of other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = dict.fromkeys(dtypes, float("inf"))
    # Alternating, so that a change of clock frequency affects all types equally.
    for _ in range(6):
        for dtype in dtypes:
            matrix = torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype)
            started = time.thread_time()
            matrix @ matrix
            best[dtype] = min(best[dtype], time.thread_time() - started)
    torch.set_num_threads(threads)
    return best
