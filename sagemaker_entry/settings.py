"""Every setting of a job: those of its machines, added to those of the training run."""

import dataclasses
import os
import re

from vgg_ddp.config import DATA_NAMES, TrainConfig
from vgg_ddp.flags import UsageError, flag

PROGRAM = "python sagemaker_entry/submit.py"
S3_PREFIX = r"s3://[^/]+/.+"
# Flags of main.py that mean something else, or nothing, in a job.
NOT_IN_A_JOB = {
    "address": "the job starts its own Ray cluster",
    "storage_path": "the job keeps its run folder at --checkpoint-uri",
    "mlflow": "its images lack MLflow; record runs from outside of it",
    "data_dir": "give --data a folder or URI: it becomes the job's channel",
}


@dataclasses.dataclass(frozen=True)
class JobConfig(TrainConfig):
    """Train on SageMaker: the flags of main.py that a job has a use for, and those of the job."""

    role: str = ""
    """ARN of the IAM role that the job runs as (required unless $SAGEMAKER_ROLE_ARN is set)."""
    region: str | None = None
    """AWS region. Unset: that of your AWS configuration."""
    bucket: str | None = None
    """Bucket for source code, checkpoints and results. Unset: SageMaker's own for account and region."""
    job_prefix: str = "vgg11-ddp"
    """Begins the job's name, and all that it stores in the bucket."""

    instance_type: str = "ml.g5.xlarge"
    """Machine that trains; one worker for each of its GPUs unless --num-workers is given."""
    instance_count: int = 1
    """How many of them."""
    coordinator_instance_type: str | None = None
    """One more machine of this type that runs Ray's head and the driver, and trains nothing."""
    volume_gb: int = 50
    """Disk of each machine in gigabytes."""
    keep_alive_seconds: int | None = None
    """Keep the machines this long for the next job (a warm pool, which is paid for)."""
    max_run_seconds: int = 4 * 3600
    """Longest time that the job may run."""
    spot: bool = False
    """Spot instances: cheaper, may be taken away; the job then goes on from its newest checkpoint."""
    max_wait_seconds: int | None = None
    """With --spot, longest time for waiting and running. Unset: twice --max-run-seconds."""
    retries: int = 2
    """How often SageMaker may start the job again after a fault of its own (30 at most)."""
    join_seconds: int = 600
    """Longest time that the machines wait for each other."""
    checkpoint_uri: str | None = None
    """S3 URI of the checkpoints. Unset: a new one in --bucket. The one of an earlier job, with --resume, goes on."""

    image: str | None = None
    """Training image. Unset: SageMaker's PyTorch image for the region and the machine."""
    subnets: tuple[str, ...] = ()
    """Subnets of a VPC to run in."""
    security_groups: tuple[str, ...] = ()
    """Security groups there."""
    encrypt_traffic: bool = False
    """Encrypt what the machines send each other."""
    kms_key: str | None = None
    """KMS key for model.tar.gz, output.tar.gz, source code and uploaded data on S3. Checkpoints take the bucket's
    default."""
    volume_kms_key: str | None = None
    """KMS key for the machines' disks."""
    tags: tuple[str, ...] = ()
    """Tags of the job, each KEY=VALUE."""

    tune: tuple[str, ...] = ()
    """Search instead of training once: NAME=LOW:HIGH or NAME=A,B,C for flags of main.py, best by test accuracy."""
    max_jobs: int = 10
    """With --tune, how many jobs in all."""
    parallel_jobs: int = 2
    """With --tune, how many at a time."""
    wait: bool = True
    """Show the job's log and wait for its end."""
    dry_run: bool = False
    """Print the exact request; send nothing, store nothing."""

    def __post_init__(self) -> None:
        """Check every value that can be checked without asking AWS.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        super().__post_init__()
        defaults = TrainConfig()
        for name, reason in NOT_IN_A_JOB.items():
            if getattr(self, name) != getattr(defaults, name):
                raise UsageError(f"{flag(name)} is not for SageMaker: {reason}.")
        check_role(self.role)
        for name in ("instance_type", "coordinator_instance_type"):
            value = getattr(self, name)
            self._expect(name, value is None or re.fullmatch(r"ml\.[\w-]+\.\w+", value) is not None, "ml.FAMILY.SIZE")
        for name in ("instance_count", "volume_gb", "max_run_seconds", "max_jobs", "parallel_jobs", "join_seconds"):
            self._expect(name, getattr(self, name) >= 1, "a positive number")
        self._expect("num_workers", self.num_workers >= 1, "a worker or more: a job trains under Ray")
        self._expect("retries", 0 <= self.retries <= 30, "0 to 30")
        valid_prefix = re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,39}", self.job_prefix)
        self._expect("job_prefix", bool(valid_prefix), "up to 40 letters, digits and '-'")
        self._expect("spot", not (self.spot and self.keep_alive_seconds), "no --keep-alive-seconds next to it")
        wait = self.max_wait_seconds
        self._expect("max_wait_seconds", wait is None or (self.spot and wait >= self.max_run_seconds),
                     "--spot, and at least --max-run-seconds")  # fmt: skip
        self._expect("subnets", bool(self.subnets) == bool(self.security_groups), "--security-groups next to it")
        self._expect("tags", all(tag.find("=") > 0 for tag in self.tags), "KEY=VALUE")
        self._expect("keep_alive_seconds", (self.keep_alive_seconds or 0) >= 0, "zero or a positive number")
        self._expect("image", self.image != "", "the URI of an image")
        bucket = self.bucket
        self._expect("bucket", bucket is None or bool(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket)),
                     "the name of a bucket, without s3://")  # fmt: skip
        is_uri = self.has_own_data and "://" in self.data
        self._expect("data", not is_uri or bool(re.fullmatch(S3_PREFIX, self.data)),
                     "a local folder, or s3://BUCKET/PREFIX")  # fmt: skip
        uri = self.checkpoint_uri
        self._expect("checkpoint_uri", uri is None or bool(re.fullmatch(S3_PREFIX, uri)), "s3://BUCKET/PREFIX")
        self._expect("resume", not self.resume or bool(uri), "the --checkpoint-uri of that job next to it")
        weights = self.init_from
        self._expect("init_from", weights is None or weights.startswith("s3://"), "s3://BUCKET/..., which the job sees")
        self._check_tuning()

    def _check_tuning(self) -> None:
        """Check what a search can do: the SDK's tuner knows neither machine groups nor warm pools."""
        if not self.tune:
            return
        self._expect("tune", not self.coordinator_instance_type, "no --coordinator-instance-type next to it")
        for name in ("keep_alive_seconds", "volume_kms_key", "encrypt_traffic"):
            # The SDK's tuner would leave these out of its jobs without a word.
            self._expect("tune", not getattr(self, name), f"no {flag(name)} next to it")
        self._expect("tune", not (self.resume or self.run_name), "neither --resume nor --run-name next to it")
        names = {field.name for field in dataclasses.fields(TrainConfig)} - set(NOT_IN_A_JOB)
        for search in self.tune:
            name, _, values = search.partition("=")
            known = name.replace("-", "_") in names
            if not known or not ("," in values or _is_range(values)):
                raise UsageError(
                    f"--tune {search}: expected a flag of main.py with LOW:HIGH or choices, as in lr=0.05:0.4."
                )
        # SageMaker's newest images are not known to bring it.
        self._expect("tune", bool(self.image), "--image with SageMaker's training toolkit next to it")

    def check_workers(self) -> None:
        """Check what depends on the number of workers, if it was given: else the job's GPUs decide."""
        if self.num_workers != TrainConfig.num_workers:
            super().check_workers()

    @property
    def has_own_data(self) -> bool:
        """Whether --data is a folder or URI, and so becomes a channel."""
        return self.data not in DATA_NAMES


def _is_range(values: str) -> bool:
    """Whether a text is LOW:HIGH."""
    low, _, high = values.partition(":")
    try:
        return float(low) < float(high)
    except ValueError:
        return False


def check_role(given: str) -> str:
    """The role to run as: what was given, or else the environment's.

    Raises:
        UsageError: if it is no ARN of a role.
    """
    role = given or os.environ.get("SAGEMAKER_ROLE_ARN", "")
    if not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/\S+", role):
        raise UsageError(f"--role {role or '(unset)'}: expected arn:aws:iam::ACCOUNT:role/NAME.")
    return role


def hyperparameters(config: JobConfig, arguments: list[str]) -> dict[str, str]:
    """The flags of main.py among the arguments, with the values that the config has for them.

    Flags that are not given are left out: main.py has its defaults, and the number of workers depends on the GPUs.
    """
    given = {argument.split("=")[0].lstrip("-").replace("_", "-") for argument in arguments if argument[:2] == "--"}
    chosen = {}
    for field in dataclasses.fields(TrainConfig):
        name = field.name.replace("_", "-")
        if {name, f"no-{name}"} & given and not (field.name == "data" and config.has_own_data):
            value = getattr(config, field.name)
            chosen[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return chosen
