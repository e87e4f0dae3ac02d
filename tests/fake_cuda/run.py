"""Run a command on fake GPUs: python tests/fake_cuda/run.py --gpus 2 ray_app/main.py --epochs 1

The libraries are compiled into a temporary folder first. Everything from the script on is passed to Python. Settings of
the fake CUDA (src/fake.h) are environment variables. At the end, prints the counts of all processes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cuda import build, counts


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script and its arguments, or -m and a module")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fake-cuda-") as temporary:
        folder = Path(temporary)
        build.build(folder)
        counted = folder / "counts"
        counted.mkdir()
        environment = build.environment(folder, arguments.gpus, counts=counted)
        # Settings that the user has made come first.
        result = subprocess.run([sys.executable, *arguments.command], env=environment_of(environment))
        for name, value in sorted(counts.total(counted).items()):
            print(f"{value:>10,} {name}", file=sys.stderr)
    return result.returncode


def environment_of(fake: dict[str, str]) -> dict[str, str]:
    """The environment of the command: settings that the user has made come first."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith("FAKE_CUDA_")}
    return os.environ | fake | chosen


if __name__ == "__main__":
    sys.exit(main())
