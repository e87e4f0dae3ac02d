"""Submit a training or tuning job: python sagemaker_entry/submit.py --role ARN --instance-type ml.g5.12xlarge ...

Exit codes: 0 the job completed (or was submitted, with --no-wait); 1 it failed or was stopped, AWS rejected it, or
waiting for it failed; 2 invalid input; 130 after Ctrl-C, which does not stop the job.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "ray_app"))

from sagemaker_entry.client import sdk
from sagemaker_entry.client.settings import PROGRAM, JobConfig
from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error
from vgg_ddp.machine.stdout import outlive_readers


def describe(config: JobConfig) -> str:
    """The most machine time that the job can cost."""
    machines = f"{config.instance_count} x {config.instance_type}"
    if config.coordinator_instance_type:
        machines = f"1 x {config.coordinator_instance_type} + {machines}"
    text = f"{machines}, at most {config.max_run_seconds / 3600:g} h"
    if config.spot:
        text += f" on spot instances, including waiting at most {config.spot_wait_seconds / 3600:g} h"
    if config.keep_alive_seconds:
        text += f", then kept running (and billed) for up to {config.keep_alive_seconds} s"
    return f"{config.max_jobs} jobs, {config.parallel_jobs} at a time, each {text}" if config.tune else text


def submit(config: JobConfig, arguments: list[str]) -> None:
    """Submit the job or search and, unless --no-wait is given, wait until it ends."""
    # Imported here so that --help answers at once: importing the SDK takes seconds.
    from sagemaker_entry.client.channels import check_data, create_channels
    from sagemaker_entry.client.session import open_session
    from sagemaker_entry.client.staging import stage
    from sagemaker_entry.client.trainer import build_trainer
    from sagemaker_entry.client.tuning import build_tuner
    from sagemaker_entry.client.waiting import submitted_name, submitting, wait_for_job, wait_for_search

    check_data(config)
    print(f"Machines:  {describe(config)}", flush=True)
    session = open_session(config)
    submission = sdk.Submission(session.boto_session)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, arguments, stage(Path(folder) / "source"), session)
        print(f"Image:     {trainer.training_image}")
        print(f"Storage:   {trainer.checkpoint_config.s3_uri}", flush=True)
        channels = create_channels(trainer, config)
        with submitting(submission):
            if config.tune:
                build_tuner(config, trainer).tune(inputs=channels or None, wait=False)
            else:
                trainer.train(input_data_config=channels, wait=False, logs=False)
    name = submitted_name(submission)
    print(f"{'Tuning:' if config.tune else 'Job:   '}    {name}", flush=True)
    if config.wait:
        wait = wait_for_search if config.tune else wait_for_job
        wait(session.boto_session, name)


def main() -> int:
    arguments = sys.argv[1:]
    try:
        config = parse_flags(JobConfig, arguments, PROGRAM)
        sdk.require()
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from sagemaker_entry.client.session import SDK_ERRORS

        try:
            submit(config, arguments)
        except sdk.DryRunError as dry_run:
            print(json.dumps(dry_run.request, indent=2))
        except SDK_ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped waiting. If the job was submitted, it is still running.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
