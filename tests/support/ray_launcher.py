"""Runs a script as public launchers of Ray jobs on SageMaker do: python ray_launcher.py -e SCRIPT ARGUMENTS OF SCRIPT

It starts Ray, joins it, changes to the script's folder, and runs the script in its own process, as `__main__`. The
arguments are those of both. Afterwards, it stops all Ray processes. A SystemExit of the script gets lost.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import ray


def run(script: Path) -> None:
    os.chdir(script.parent)
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location("__main__", script)
    assert spec and spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-e", "--entrypoint", required=True)
    parser.add_argument("--include-dashboard", default="true")
    parser.add_argument("--wait-shutdown", type=int)
    options, _ = parser.parse_known_args()
    script = Path(options.entrypoint).absolute()
    variables = dict(os.environ) | {"PYTHONPATH": str(script.parent)}
    command = ["ray", "start", "--head", "--port=6379", f"--include-dashboard={options.include_dashboard}"]
    subprocess.run(command, env=variables, check=True)
    failed = False
    try:
        ray.init(address="auto", runtime_env={"env_vars": variables})
        run(script)
        print(f"{script.name} returned, Ray is initialized: {ray.is_initialized()}", flush=True)
    except Exception as error:
        failed = True
        print(f"{script.name} raised {error!r}", flush=True)
    finally:
        ray.shutdown()
        subprocess.run(["ray", "stop"], check=False)
        return int(failed)  # noqa: B012 - this is how a SystemExit gets lost


if __name__ == "__main__":
    sys.exit(main())
