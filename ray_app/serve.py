"""Serve a trained model over HTTP: python ray_app/serve.py RUN_OR_MODEL

Exit codes: 1 the application failed, or was deleted; 2 invalid input; 129 stopped by SIGHUP, as when the terminal
closes; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import os
import sys

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error
from vgg_ddp.machine.environment import check_environment, run_script
from vgg_ddp.serving.config import ServeConfig


def main() -> int:
    try:
        check_environment()
        config = parse_flags(ServeConfig, sys.argv[1:], "python ray_app/serve.py")
        # Imported here to keep --help and flag errors fast.
        from vgg_ddp.serving.server import serve_until_stopped

        return serve_until_stopped(config)
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    run_script(main)
