"""Submit a training or tuning job: python sagemaker_entry/submit.py --role ARN --instance-type ml.g5.12xlarge ...

Exit codes, also with --attach: 0 the job completed (or was submitted, with --no-wait); 1 it failed or was stopped, AWS
rejected it, or waiting for it failed; 2 invalid input; 130 after Ctrl-C, which does not stop the job.
"""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "ray_app"))

from sagemaker_entry.api import Job, Search, find
from sagemaker_entry.client import sdk
from sagemaker_entry.client.settings import PROGRAM, JobConfig
from sagemaker_entry.submission import submit
from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error
from vgg_ddp.machine.stdout import outlive_readers

INTERRUPTED = 130


def run(config: JobConfig, arguments: Sequence[str]) -> int:
    """Submit, follow, or stop a job or search; return the exit code."""
    if config.stop:
        find(config.stop, config.region).stop()
        return 0
    if config.attach:
        return follow(find(config.attach, config.region))
    kind = Search if config.tune else Job
    submitted = kind(*submit(config, arguments))
    print(submitted.next_steps(), flush=True)
    return follow(submitted) if config.wait else 0


def follow(job: Job | Search) -> int:
    """Follow a job or search to its end; return the exit code."""
    try:
        job.follow()
    except KeyboardInterrupt:
        print(f"\nStopped following {job.name}, which continues.\n{job.next_steps()}", file=sys.stderr)
        return INTERRUPTED
    return 0


def main() -> int:
    arguments = sys.argv[1:]
    try:
        config = parse_flags(JobConfig, arguments, PROGRAM)
        sdk.require()
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from sagemaker_entry.client.errors import ERRORS

        try:
            return run(config, arguments)
        except sdk.DryRunError as dry_run:
            print(json.dumps(dry_run.request, indent=2))
        except ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped. If the job was submitted, it is still running.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
