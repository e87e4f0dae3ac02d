"""Benchmarks. Run each module from the project's root, such as `python -m benchmarks.speed.throughput`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ray_app"))
