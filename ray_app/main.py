"""The command: python ray_app/main.py --num-workers 4. Reads the flags, launches the run, exits with its outcome.

Exit codes: 0 the run is finished; 1 training failed; 2 the input cannot be used; 130 after Ctrl-C; 143 after SIGTERM.
"""

import os
import sys
import time
from typing import NoReturn

from vgg_ddp import torchrun
from vgg_ddp.config import PROGRAM, TrainConfig
from vgg_ddp.flags import BAD_INPUT, UsageError, parse_flags, print_usage_error
from vgg_ddp.output import outlive_readers


def main() -> int:
    started_at = time.time()
    arguments = sys.argv[1:]
    if torchrun.has_started_this():
        # Its processes are the workers.
        arguments = ["--num-workers", "0", *arguments]
    try:
        config = parse_flags(TrainConfig, arguments, PROGRAM)
        # Imported here, so that --help and a wrong flag answer at once.
        from vgg_ddp.launch import launch

        return launch(config, arguments, started_at)
    except UsageError as error:
        print_usage_error(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", flush=True)
        return 130


def end(exit_code: int) -> NoReturn:
    """End this process at once, once `launch` has shut Ray down.

    Python's own end would wait for images that are still being decoded, kill the thread that decodes them within C++,
    which can abort the process, and look through all that torch and Ray hold for a second.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    outlive_readers()
    end(main())
