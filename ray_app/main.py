"""The command: python ray_app/main.py --num-workers 4. Reads the flags, launches the run, exits with its outcome.

Exit codes: 0 the run is finished; 1 training failed; 2 the input cannot be used; 130 after Ctrl-C; 143 after SIGTERM.
"""

import gc
import sys
import time

from vgg_ddp import torchrun
from vgg_ddp.config import PROGRAM, TrainConfig
from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error


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
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", flush=True)
        return 130


if __name__ == "__main__":
    exit_code = main()
    # Else Python looks once more through all that torch and Ray hold, for a second, before it ends.
    gc.freeze()
    sys.exit(exit_code)
