"""Submit, follow, stop, resume, and deploy from Python: in a script, or in a SageMaker notebook."""

import dataclasses
from typing import Any, Self

from sagemaker_entry.client import sdk
from sagemaker_entry.client.checks.given import check_given
from sagemaker_entry.client.region import open_boto_session
from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.jobs.endpoint import Endpoint
from vgg_ddp.flags import UsageError, flag
from vgg_ddp.run.files import METRICS_FILE, Row, parse_metrics

# Fields of JobConfig that only the command has, and what to use instead.
OF_THE_COMMAND = {
    "wait": "call follow() of the job",
    "dry_run": "use submit.py --dry-run",
    "attach": "use attach_job",
    "stop": "call stop() of the job",
}


def submit_job(**settings: Any) -> "Job":
    """Submit a training job as `python sagemaker_entry/submit.py` does, and print the same lines.

    Args:
        settings: fields of JobConfig; `--batch-size 256` is `batch_size=256`. All of them count, also those that are
            equal to the default, except those that are None.

    Raises:
        UsageError: if the settings, the data, or the role are invalid.
        botocore.exceptions.ClientError: if AWS rejected the job.
        WaitError: if the job may be running, although an error occurred.
    """
    if settings.get("tune"):
        raise UsageError("--tune submits several jobs: use submit_search.")
    return Job(*_submit(settings))


def submit_search(**settings: Any) -> "Search":
    """Submit a hyperparameter search: `submit_job` with `tune=["lr=0.02:0.2", ...]`."""
    if not settings.get("tune"):
        raise UsageError("--tune is required: expected settings to tune, such as lr=0.02:0.2.")
    return Search(*_submit(settings))


def attach_job(name: str, region: str | None = None) -> "Job":
    """The training job of this name, for example after the notebook was restarted.

    Args:
        name: name of the job.
        region: AWS region; None for the one in your AWS configuration.

    Raises:
        UsageError: if there is no such job.
    """
    found = find(name, region)
    if not isinstance(found, Job):
        raise UsageError(f"{name} is a search: use attach_search.")
    return found


def attach_search(name: str, region: str | None = None) -> "Search":
    """The search of this name; see `attach_job`."""
    found = find(name, region)
    if not isinstance(found, Search):
        raise UsageError(f"{name} is a job: use attach_job.")
    return found


def find(name: str, region: str | None) -> "Job | Search":
    """The job or search of this name.

    Raises:
        UsageError: if there is none, or no region is configured.
    """
    sdk.require()
    from botocore.exceptions import ClientError

    session = open_boto_session(region)
    kinds: tuple[type[Job | Search], ...] = (Job, Search)
    for kind in kinds:
        candidate = kind(name, session.region_name)
        try:
            candidate.describe()
        except ClientError as error:
            # How SageMaker and how moto say that there is none.
            if error.response["Error"]["Code"] not in ("ValidationException", "ResourceNotFound"):
                raise
        else:
            return candidate
    raise UsageError(f"{name}: there is no job or search of this name in {session.region_name}.")


@dataclasses.dataclass(frozen=True)
class _Submitted:
    """What a job and a search have in common.

    Attributes:
        name: name of the job or search.
        region: AWS region.
    """

    name: str
    region: str

    def next_steps(self) -> str:
        """The commands that follow and stop it."""
        from sagemaker_entry.jobs.follow import attach_command, stop_command

        return f"Follow it: {attach_command(self.name, self.region)}\nStop it:   {stop_command(self.name, self.region)}"

    def client(self, service: str) -> Any:
        """A new client, which finds the newest credentials."""
        import boto3

        return boto3.Session(region_name=self.region).client(service)


class Job(_Submitted):
    """A training job."""

    def describe(self) -> dict[str, Any]:
        """SageMaker's description of the job: the answer to DescribeTrainingJob."""
        described: dict[str, Any] = self.client("sagemaker").describe_training_job(TrainingJobName=self.name)
        return described

    def follow(self) -> None:
        """Print the job's status and its log, from the first line, until it ends.

        Throttling, a lost network, and expired credentials are waited out, for 30 minutes at most.

        Raises:
            NotCompletedError: if the job failed or was stopped.
            WaitError: if AWS rejected a call, or could not be reached; the job may still be running.
        """
        from sagemaker_entry.jobs.connection import Connection
        from sagemaker_entry.jobs.follow import wait_for_job

        wait_for_job(Connection(self.region), self.name)

    def stop(self) -> None:
        """Stop the job, which then saves a checkpoint. Does not wait; prints the new status."""
        status = self.describe()["TrainingJobStatus"]
        if status == "InProgress":
            self.client("sagemaker").stop_training_job(TrainingJobName=self.name)
            status = "Stopping"
        print(f"Status:    {status}", flush=True)

    def resume(self, **changes: Any) -> Self:
        """Submit a job that continues this one's run, with its settings and checkpoints, in the same region.

        Args:
            changes: settings of the new job that differ, such as a higher `epochs` or another `instance_type`.

        Raises:
            UsageError: if this job still runs, or has no checkpoints on S3; also for the reasons of `submit_job`.
        """
        from sagemaker_entry.client.images import find_training_image
        from sagemaker_entry.jobs.description import run_name, settings_of
        from sagemaker_entry.jobs.follow import ENDED

        job = self.describe()
        if job["TrainingJobStatus"] not in ENDED:
            raise UsageError(f"{self.name} still runs: stop it before you resume it.")
        tags = self.client("sagemaker").list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
        settings = settings_of(job, tags) | {"resume": run_name(job), "region": self.region}
        if settings["image"] == find_training_image(self.region, settings["instance_type"])[0]:
            # Another instance type may need another one of SageMaker's images.
            del settings["image"]
        return type(self)(*_submit(settings | changes))

    def metrics(self) -> list[Row]:
        """The metrics of each finished epoch, with the columns of metrics.csv; the last row is the newest.

        They are in the job's run folder on S3, so they are there while the job runs, and after it failed.
        """
        from sagemaker_entry.jobs.description import run_uri

        bucket, _, folder = run_uri(self.describe()).removeprefix("s3://").partition("/")
        s3 = self.client("s3")
        try:
            content = s3.get_object(Bucket=bucket, Key=f"{folder}/{METRICS_FILE}")["Body"].read()
        except s3.exceptions.NoSuchKey:
            return []
        rows, _ = parse_metrics(content)
        return rows

    def deploy(self, endpoint: str, **settings: Any) -> Endpoint:
        """Serve the job's model as `python sagemaker_entry/deploy.py` does, and wait until it is in service.

        Args:
            endpoint: name of the endpoint.
            settings: other fields of DeployConfig. By default, the role is that of the job.

        Raises:
            UsageError: if the settings are invalid, or the job has not completed.
            EndpointError: if the endpoint did not come into service.
        """
        role = {"role": self.describe()["RoleArn"]}
        return Endpoint.create(**role | {"job": self.name, "region": self.region, "endpoint": endpoint} | settings)


class Search(_Submitted):
    """A hyperparameter search: several jobs, ranked by validation accuracy."""

    def describe(self) -> dict[str, Any]:
        """SageMaker's description of the search: the answer to DescribeHyperParameterTuningJob."""
        sagemaker = self.client("sagemaker")
        described: dict[str, Any] = sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=self.name)
        return described

    def follow(self) -> None:
        """Print the number of completed, running, and failed jobs until the search ends, then the best job.

        Raises:
            NotCompletedError: if the search failed, was stopped, or has no best job.
            WaitError: as `Job.follow`.
        """
        from sagemaker_entry.jobs.connection import Connection
        from sagemaker_entry.jobs.follow import wait_for_search

        wait_for_search(Connection(self.region), self.name)

    def stop(self) -> None:
        """Stop the search and its jobs. Does not wait; prints the new status."""
        status = self.describe()["HyperParameterTuningJobStatus"]
        if status == "InProgress":
            self.client("sagemaker").stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=self.name)
            status = "Stopping"
        print(f"Status:    {status}", flush=True)

    def best_job(self) -> Job:
        """The job with the highest validation accuracy so far.

        Raises:
            UsageError: if there is none yet.
        """
        best = self.describe().get("BestTrainingJob")
        if not best:
            raise UsageError(f"{self.name}: none of its jobs has reported a validation accuracy yet.")
        return Job(best["TrainingJobName"], self.region)


def _submit(settings: dict[str, Any]) -> tuple[str, str]:
    """Submit a job or search with these settings; return its name and region."""
    given = check_given(JobConfig, settings)
    for name, instead in OF_THE_COMMAND.items():
        if given.get(name):
            raise UsageError(f"{name} is only for the command: {instead}.")
    sdk.require()
    from sagemaker_entry.submission import submit, undisturbed

    with undisturbed():
        return submit(JobConfig(**given), [flag(name) for name in given])
