"""Train: python ray_app/main.py --num-workers 4

Exit codes: 0 run finished; 1 training failed; 2 invalid input; 129 stopped by SIGHUP, as when the terminal closes; 130
stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import os
import sys
import time
import traceback
from typing import NoReturn

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.config import PROGRAM, TrainConfig
from vgg_ddp.flags import BAD_INPUT, UsageError, parse_flags, print_usage_error
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.environment import check_environment, prepare_process


def main() -> int:
    started_at = time.time()
    arguments = sys.argv[1:]
    if torchrun.is_launcher():
        # torchrun's processes are themselves the workers.
        arguments = ["--num-workers", "0", *arguments]
    try:
        check_environment()
        config = parse_flags(TrainConfig, arguments, PROGRAM)
        # Imported here to keep --help and flag errors fast.
        from vgg_ddp.driver.conclude import exit_code
        from vgg_ddp.driver.launch import launch

        result = launch(config, arguments, started_at)
        if result.ended == "refused" and torchrun.is_rank_zero():
            print_usage_error(UsageError(result.message))
        return exit_code(result)
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
    """Exit without Python's own shutdown; `launch` has already shut down Ray.

    Python's shutdown would wait for images that are still being decoded, could abort while stopping the decoding
    threads inside C++, and takes a second to free the memory of torch and Ray.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    prepare_process()
    end(main())
