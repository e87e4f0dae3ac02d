"""Run a Python script on fake GPUs: FAKE_CUDA_GPUS=2 python tests/fake_cuda/run.py -- ray_app/main.py --epochs 1

The libraries are compiled into a temporary folder first. All settings (src/fake.h) are environment variables. At the
end, prints the counts of all processes.
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
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", nargs="+", help="a script and its arguments, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fake-cuda-") as temporary:
        folder = Path(temporary)
        try:
            build.build(folder)
        except build.UnavailableError as error:
            parser.error(str(error))
        counted = folder / "counts"
        counted.mkdir()
        fake = build.environment(folder, gpus=1, counts=counted)
        # Settings that the user has made come first; but the counts are read here.
        chosen = {name: value for name, value in os.environ.items() if name.startswith("FAKE_CUDA_")}
        environment = os.environ | fake | chosen | {"FAKE_CUDA_COUNTS": str(counted)}
        result = subprocess.run([sys.executable, *arguments.script], env=environment)
        for name, value in sorted(counts.total(counted).items()):
            print(f"{value:>10,} {name}", file=sys.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
