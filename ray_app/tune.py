"""Tune settings: python ray_app/tune.py lr=0.02:0.2 batch-size=128,256 --num-samples 12

Exit codes: 0 a trial finished; 1 none did; 2 invalid input; 129 stopped by SIGHUP, as when the terminal closes; 130
stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import os
import sys

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.flags import parse_flags
from vgg_ddp.machine.environment import check_environment, run_driver
from vgg_ddp.sweep.config import PROGRAM, SweepConfig


def main() -> int:
    arguments = sys.argv[1:]
    check_environment()
    config = parse_flags(SweepConfig, arguments, PROGRAM)
    # Imported here to keep --help and flag errors fast.
    from vgg_ddp.sweep.launch import launch

    return launch(config, arguments)


if __name__ == "__main__":
    run_driver(main)
