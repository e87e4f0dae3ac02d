"""Tune settings: python ray_app/tune.py lr=0.02:0.2 batch-size=128,256 --num-samples 12

Exit codes: 0 a trial finished; 1 none did; 2 invalid input; 129 stopped by SIGHUP, as when the terminal closes; 130
stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import os
import sys
import traceback
from typing import NoReturn

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.flags import BAD_INPUT, UsageError, parse_flags, print_usage_error
from vgg_ddp.machine.environment import check_environment, prepare_process
from vgg_ddp.sweep.config import PROGRAM, SweepConfig


def main() -> int:
    arguments = sys.argv[1:]
    try:
        check_environment()
        config = parse_flags(SweepConfig, arguments, PROGRAM)
        # Imported here to keep --help and flag errors fast.
        from vgg_ddp.sweep.launch import launch

        return launch(config, arguments)
    except UsageError as error:
        print_usage_error(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", flush=True)
        return 130
    except Exception:
        # Python's shutdown would print the same, but may then abort.
        traceback.print_exc()
        return 1


def end(exit_code: int) -> NoReturn:
    """Exit without Python's own shutdown, as main.py does; `launch` has already shut down Ray."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    prepare_process()
    end(main())
