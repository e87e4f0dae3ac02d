"""Submit a job or search: check the input, stage the source code, and send the request."""

import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sagemaker_entry.client import sdk
from sagemaker_entry.client.settings import JobConfig
from vgg_ddp.flags import UsageError

_submits_alone = threading.Lock()


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


def submit(config: JobConfig, arguments: Sequence[str]) -> tuple[str, str]:
    """Submit the job or search, and print what it is; return its name and region.

    Args:
        config: the settings.
        arguments: flags that were given, which the job gets even if their values are the defaults.

    Raises:
        UsageError: if the settings or the data are invalid.
        sdk.DryRunError: instead of sending the request of a dry run.
        SubmissionError: if the SDK rejected the request.
        WaitError: if the job may be running, although an error occurred.
    """
    # Imported here so that --help answers at once: importing the SDK takes seconds.
    from sagemaker_entry.client.channels import check_data
    from sagemaker_entry.client.errors import SubmissionError
    from sagemaker_entry.client.session import SDK_ERRORS, open_session

    _check_source()
    check_data(config)
    print(f"Machines:  {describe(config)}", flush=True)
    try:
        session = open_session(config)
        name = _send(config, list(arguments), session)
    except SDK_ERRORS as error:
        raise SubmissionError(str(error)) from error
    print(f"{'Tuning:' if config.tune else 'Job:   '}    {name}", flush=True)
    return name, session.boto_region_name


def _check_source() -> None:
    """Check that the folders that a job receives are there.

    Raises:
        UsageError: if only the packages were installed.
    """
    from sagemaker_entry.client.staging import FOLDERS, ROOT

    if not all((ROOT / name).is_dir() for name in FOLDERS):
        raise UsageError("the source code of a job is not installed: in the repository, run pip install -e .")


def _send(config: JobConfig, arguments: list[str], session: Any) -> str:
    """Upload the source code and the data, and submit the job or search; return its name."""
    from sagemaker_entry.client.channels import create_channels
    from sagemaker_entry.client.staging import stage
    from sagemaker_entry.client.trainer import build_trainer, checkpoint_uri
    from sagemaker_entry.client.tuning import build_tuner

    submission = sdk.Submission(session.boto_session)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, arguments, stage(Path(folder) / "source"), session)
        print(f"Image:     {trainer.training_image}")
        storage = checkpoint_uri(trainer.hyperparameters, trainer.checkpoint_config.s3_uri)
        print(f"Storage:   {storage}", flush=True)
        channels = create_channels(trainer, config)
        with submitting(submission, session.boto_region_name):
            if config.tune:
                build_tuner(config, trainer).tune(inputs=channels or None, wait=False)
            else:
                trainer.train(input_data_config=channels, wait=False, logs=False)
    return submitted_name(submission)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hide the SDK's warnings about its own dependencies, and unset what this program sets in the environment.

    Both belong to the whole process, so threads submit one after the other.
    """
    with _submits_alone:
        before = os.environ.get(sdk.VALIDATE_ROLE)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                yield
        finally:
            if before is None:
                os.environ.pop(sdk.VALIDATE_ROLE, None)
            else:
                os.environ[sdk.VALIDATE_ROLE] = before


@contextmanager
def submitting(submission: sdk.Submission, region: str) -> Iterator[None]:
    """Name the job in any error raised after its request was sent, unless AWS rejected the request.

    Raises:
        WaitError: if the job may be running.
    """
    from botocore.exceptions import ClientError

    from sagemaker_entry.jobs.follow import may_be_running

    try:
        yield
    except Exception as error:
        is_rejected = isinstance(error, ClientError) and error.operation_name in sdk.SUBMISSIONS
        if submission.name is None or is_rejected or isinstance(error, sdk.DryRunError):
            raise
        raise may_be_running(submission.name, region, error) from error


def submitted_name(submission: sdk.Submission) -> str:
    """The name of the job that was submitted.

    Raises:
        WaitError: if the SDK did not send the request through the session it was given.
    """
    from sagemaker_entry.client.errors import WaitError

    if submission.name is None:
        raise WaitError(
            "SageMaker's SDK did not return a job. If it submitted one, this command shows its name: aws sagemaker "
            "list-training-jobs --sort-by CreationTime --sort-order Descending --max-results 1"
        )
    return submission.name
