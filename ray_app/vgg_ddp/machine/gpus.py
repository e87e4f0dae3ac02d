"""Find out whether torch can compute on the GPUs of this machine, and if not, why."""

import ctypes
import os
import re
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vgg_ddp.flags import UsageError

NVML = "libnvidia-ml.so.1"
VISIBLE = "CUDA_VISIBLE_DEVICES"
VERSION_BYTES = 80


@dataclass(frozen=True)
class Gpus:
    """The GPUs that this process sees.

    Attributes:
        count: how many there are, even if torch cannot use them.
        problem: why torch cannot compute on those that are needed, as one line; None if it can.
    """

    count: int
    problem: str | None


@dataclass(frozen=True)
class _Driver:
    """What NVIDIA's management library (NVML) says of this machine."""

    gpus: int = 0
    version: str = ""
    # 1000 * major + 10 * minor of the newest CUDA that the driver supports; 0 if the driver is too old to tell.
    cuda: int = 0


def find_gpus(needed: int | None = None) -> Gpus:
    """Look at the first `needed` GPUs that this process sees; by default, at all of them.

    Runs nothing on the GPUs. It initializes CUDA if there are any, which can take seconds.
    """
    driver, node = _read_driver(), socket.gethostname()
    count = _count_visible(driver)
    if count == 0:
        return Gpus(0, f"torch {torch.__version__} sees no GPU on {node}; check nvidia-smi there")
    if needed and count < needed:
        return Gpus(count, f"torch {torch.__version__} sees {count} of {needed} GPUs on {node}; start fewer processes")
    problem = _cuda_problem(driver) or _architecture_problem(needed or count)
    return Gpus(count, problem and f"GPUs cannot be used on {node}: {problem}")


def can_use_gpus(device: str, needed: int, activity: str) -> bool:
    """Whether torch can use the first `needed` GPUs that this process sees; if not, `fall_back`.

    Raises:
        UsageError: if it cannot, but must.
    """
    problem = find_gpus(needed).problem
    if problem:
        fall_back(device, problem, activity=activity)
    return problem is None


def fall_back(device: str, problem: str, is_announced: bool = True, activity: str = "Training") -> None:
    """React to GPUs that cannot be used, for this value of --device: refuse, or say that the activity uses CPUs.

    Raises:
        UsageError: if it must use GPUs.
    """
    if device == "gpu":
        raise UsageError(f"--device gpu: {problem}, or use --device cpu.")
    if is_announced:
        print(f"NOTE: {problem}. {activity} on CPUs.", flush=True)


def runs_code_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a GPU of this compute capability runs code that was compiled for one of these architectures.

    Machine code (sm_80) also runs on later GPUs of the same major version, and PTX (compute_80) on all later ones; code
    for the features of one architecture (sm_90a) runs only there.
    https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
    """
    for architecture in architectures:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if parts is None:
            continue
        kind, built_for = parts[1], (int(parts[2]), int(parts[3]))
        same_major = built_for[0] == capability[0]
        if built_for == capability or (
            built_for < capability and parts[4] != "a" and (same_major or (kind == "compute" and not parts[4]))
        ):
            return True
    return False


def _built_for_gpus() -> bool:
    return bool(torch.version.cuda or torch.version.hip)


def _count_visible(driver: _Driver) -> int:
    if _built_for_gpus():
        return torch.cuda.device_count()
    return 0 if os.environ.get(VISIBLE) == "" else driver.gpus


def _cuda_problem(driver: _Driver) -> str | None:
    """Why CUDA cannot be used at all."""
    if torch.version.hip:
        return None if torch.cuda.is_available() else "ROCm does not work; check rocminfo"
    if not _built_for_gpus():
        return f"torch {torch.__version__} is built for CPUs; install a torch for CUDA"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    built = f"torch {torch.__version__}, which was built for CUDA {torch.version.cuda}"
    if driver.cuda < 1000 * int(str(torch.version.cuda).partition(".")[0]):
        return f"the NVIDIA driver {driver.version} is too old for {built}; update the driver"
    reason = " ".join(str(warned[0].message).split()) if warned else "libcuda.so.1 may be missing"
    return f"the NVIDIA driver {driver.version} does not work with {built} ({reason}); repair the driver"


def _architecture_problem(count: int) -> str | None:
    """Why torch's kernels do not run on one of the first `count` GPUs."""
    architectures = torch.cuda.get_arch_list()
    if torch.version.hip or not architectures:
        return None
    with warnings.catch_warnings():
        # torch warns about the same in several lines.
        warnings.simplefilter("ignore")
        for index in range(count):
            major, minor = torch.cuda.get_device_capability(index)
            if not runs_code_for((major, minor), architectures):
                return (
                    f"torch {torch.__version__} has no code for GPU {index}, {torch.cuda.get_device_name(index)} "
                    f"(sm_{major}{minor}; torch has {' '.join(architectures)}); install a torch that supports it"
                )
    return None


def _read_driver() -> _Driver:
    """Ask NVML, which works even if CUDA does not."""
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return _Driver()
    if nvml.nvmlInit_v2() != 0:
        return _Driver()
    count, version, cuda = ctypes.c_uint(), ctypes.create_string_buffer(VERSION_BYTES), ctypes.c_int()
    # After a failed call, the value stays empty.
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlSystemGetDriverVersion(version, VERSION_BYTES)
    if hasattr(nvml, "nvmlSystemGetCudaDriverVersion_v2"):
        nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))
    return _Driver(count.value, version.value.decode(), cuda.value)
