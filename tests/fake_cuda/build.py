"""Compile the fake CUDA with g++, and the environment variables that put a process on it."""

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
STARTUP = HERE / "startup"
LIBRARY, DRIVER, NVML = "libfakecuda.so", "libcuda.so.1", "libnvidia-ml.so.1"


class UnavailableError(Exception):
    """The fake CUDA cannot be built or used on this machine; the message says why."""


def build(folder: Path) -> None:
    """Compile the libraries into a folder.

    Raises:
        UnavailableError: if this machine or this build of torch cannot use them.
    """
    import torch

    if torch.version.cuda is None:
        raise UnavailableError("needs a CUDA build of torch, not one for the CPU")
    if int(torch.version.cuda.split(".")[0]) < 13:
        # Before, several functions of the runtime had other names.
        raise UnavailableError(f"needs torch for CUDA 13 or later, not {torch.version.cuda}")
    if Path("/dev/nvidiactl").exists():
        raise UnavailableError("this machine has a real GPU, which the fake one would hide")
    compiler = shutil.which("g++")
    if compiler is None:
        raise UnavailableError("needs g++")
    major, minor = (int(part) for part in torch.version.cuda.split(".")[:2])
    nccl_major, nccl_minor, nccl_patch = torch.cuda.nccl.version()[:3]
    options = [
        *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-c"),
        f"-I{_include_folder()}",
        f"-DFAKE_CUDA_VERSION={1000 * major + 10 * minor}",
        f"-DFAKE_CUDA_OLDEST_CAPABILITY={_oldest_capability()}",
        f"-DFAKE_NCCL_VERSION={10000 * nccl_major + 100 * nccl_minor + nccl_patch}",
    ]

    def compile_(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run([compiler, *options, "-o", target, source])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {target.stem: target for target in pool.map(compile_, sorted(HERE.glob("src/*.cpp")))}
    # Ray and torch open these two by their names.
    _run([compiler, "-shared", "-o", folder / NVML, objects.pop("nvml"), objects["settings"]])
    _run([compiler, "-shared", "-o", folder / DRIVER, objects.pop("driver")])
    _run([compiler, "-shared", "-pthread", "-o", folder / LIBRARY, *objects.values(), "-lrt"])


def environment(folder: Path, gpus: int, **settings: object) -> dict[str, str]:
    """The variables for a process on this many fake GPUs, with the libraries of `build`.

    `settings`: those of `src/fake.h`, without their prefix: `memory_mb=100` is FAKE_CUDA_MEMORY_MB=100. Operators are
    computed on the CPU, unless `emulate=0`.
    """
    paths = {
        "LD_PRELOAD": (folder / LIBRARY, " "),
        "LD_LIBRARY_PATH": (folder, os.pathsep),
        "PYTHONPATH": (STARTUP, os.pathsep),
    }
    joined = {
        name: separator.join(filter(None, (str(path), os.environ.get(name))))
        for name, (path, separator) in paths.items()
    }
    chosen = {"gpus": gpus, "emulate": 1, **settings}
    return joined | {f"FAKE_CUDA_{name.upper()}": str(value) for name, value in chosen.items()}


def _include_folder() -> Path:
    """Where CUDA's headers are: in packages that torch requires, or where CUDA is installed."""
    site = Path(sysconfig.get_path("purelib"))
    candidates = [*site.glob("nvidia/*/include"), site / "triton/backends/nvidia/include"]
    candidates += Path("/usr/local").glob("cuda*/include")
    for folder in candidates:
        # Some packages lack the headers that others include.
        if (folder / "driver_types.h").exists() and (folder / "crt/host_defines.h").exists():
            return folder
    raise UnavailableError("needs the headers of CUDA: driver_types.h and crt/host_defines.h")


def _oldest_capability() -> int:
    """The oldest GPUs that this build of torch has kernels for: 75 is 7.5."""
    import torch

    flags = torch._C._cuda_getArchFlags() or ""
    return min(int(flag[3:].rstrip("af")) for flag in flags.split() if flag.startswith("sm_"))


def _run(command: list[object]) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stderr}")
