"""What every benchmark writes next to its numbers: the machine, the versions, the settings."""

import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ray_app"))


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, versions, and how busy the machine was."""
    # torch takes seconds to import, and not every benchmark needs it.
    import torch

    from vgg_ddp.hardware import processor_name
    from vgg_ddp.limits import usable_cores

    return {
        "processor": processor_name(torch.device("cpu")),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "ray")},
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write the results with a description of the machine, where a path is given."""
    if path:
        path.write_text(json.dumps({"machine": describe_machine(), **results}, indent=2) + "\n")
        print(f"written to {path}")
