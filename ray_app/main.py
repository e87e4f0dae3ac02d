"""Train: python ray_app/main.py --num-workers 4

Exit codes: 0 run finished; 1 training failed; 2 invalid input; 129 stopped by SIGHUP, as when the terminal closes; 130
stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import os
import sys
import time

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.config import PROGRAM, TrainConfig
from vgg_ddp.driver.job_script import job_arguments, leave_results, reported_to_job
from vgg_ddp.flags import UsageError, parse_flags, print_usage_error
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.environment import check_environment, run_driver
from vgg_ddp.machine.guest import is_guest, own_arguments


def main() -> int:
    started_at = time.time()
    arguments = own_arguments(__file__)
    if torchrun.is_launcher():
        # torchrun's processes are themselves the workers.
        arguments = ["--num-workers", "0", *arguments]
    check_environment()
    # Outside of a SageMaker job, the functions of job_script.py do nothing.
    with reported_to_job():
        arguments = job_arguments(arguments)
        config = parse_flags(TrainConfig, arguments, PROGRAM)
        # Imported here to keep --help and flag errors fast.
        from vgg_ddp.driver.conclude import exit_code
        from vgg_ddp.driver.launch import launch

        result = launch(config, arguments, started_at)
    if result.ended == "refused" and torchrun.is_rank_zero():
        print_usage_error(UsageError(result.message))
    leave_results(result, config.storage_path)
    return exit_code(result)


if __name__ == "__main__":
    if is_guest(__file__):
        from vgg_ddp.api import call_as_guest

        call_as_guest(main)
    else:
        run_driver(main)
