"""The command line and the results file that all benchmarks share."""

import argparse
import json
import math
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flag --json, whose help starts with a module's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write the results and a description of the machine, NaN as null; without a path, do nothing."""
    if path:
        text = json.dumps(_finite({"machine": describe_machine(), **results}), indent=2, allow_nan=False)
        path.write_text(text + "\n")
        print(f"written to {path}")


def _finite(value: Any) -> Any:
    """The same value with None instead of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, load, and versions."""
    # torch takes seconds to import, and some benchmarks do not need it.
    import torch

    from vgg_ddp.machine.limits import usable_cores
    from vgg_ddp.machine.precision import processor_name

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
