"""All settings of a job: the flags of main.py, plus those for instances, storage, and the network."""

import dataclasses
import os
import re
from typing import ClassVar

from vgg_ddp.config import DATA_NAMES, TrainConfig
from vgg_ddp.flags import UsageError, flag
from vgg_ddp.search_space import VALIDATION_FRACTION, Parameter, parse_space

PROGRAM = "python sagemaker_entry/submit.py"
S3_PREFIX = r"s3://[^/]+/.+"
# Flags of main.py that do not apply to a job, and why.
NOT_IN_A_JOB = {
    "address": "the job starts its own Ray cluster",
    "storage_path": "a job stores its run folder at --checkpoint-uri",
    "mlflow": "SageMaker's images do not include MLflow",
    "data_dir": "pass the folder or URI as --data, which becomes the job's data channel",
}


@dataclasses.dataclass(frozen=True)
class JobConfig(TrainConfig):
    """Train on SageMaker: the flags of main.py that apply to a job, plus those of the job."""

    GROUPS: ClassVar = TrainConfig.GROUPS | {
        "role": "job",
        "instance_type": "machines",
        "image": "container and network",
        "tune": "tuning",
        "wait": "submission",
    }

    role: str = ""
    """ARN of the IAM role that the job assumes (required unless $SAGEMAKER_ROLE_ARN is set)."""
    region: str | None = None
    """AWS region. Default: the one in your AWS configuration."""
    bucket: str | None = None
    """S3 bucket for source code, checkpoints and results. Default: SageMaker's bucket for the account and region."""
    job_prefix: str = "vgg11-ddp"
    """Prefix of the job's name, and of all objects that it stores in the bucket."""

    instance_type: str = "ml.g5.xlarge"
    """Instance type for training. The number of workers defaults to one per GPU."""
    instance_count: int = 1
    """Number of instances."""
    coordinator_instance_type: str | None = None
    """Add one instance of this type to run Ray's head and the driver. It does not train."""
    volume_gb: int = 50
    """Disk size of each instance, in gigabytes."""
    keep_alive_seconds: int | None = None
    """Keep the instances running this long for the next job (a warm pool, which is billed)."""
    max_run_seconds: int = 4 * 3600
    """Time limit for the job."""
    spot: bool = False
    """Use spot instances: cheaper, but AWS may interrupt them. The job then resumes from its newest checkpoint."""
    max_wait_seconds: int | None = None
    """With --spot, time limit for waiting plus running. Default: twice --max-run-seconds."""
    retries: int = 2
    """How many times SageMaker may restart the job after an internal error of the service (at most 30)."""
    join_seconds: int = 600
    """How long the instances wait for each other at the start."""
    checkpoint_uri: str | None = None
    """S3 URI of the checkpoints. Default: a new prefix in --bucket. With --resume, that of the earlier job."""

    image: str | None = None
    """URI of the training image. Default: SageMaker's PyTorch image for the region and instance type."""
    subnets: tuple[str, ...] = ()
    """Subnets of the VPC to run in."""
    security_groups: tuple[str, ...] = ()
    """Security groups of the VPC to run in."""
    encrypt_traffic: bool = False
    """Encrypt traffic between the instances."""
    kms_key: str | None = None
    """KMS key for source code, uploaded data, model.tar.gz and output.tar.gz on S3. Checkpoints use the bucket's
    default encryption."""
    volume_kms_key: str | None = None
    """KMS key for the disks of the instances."""
    tags: tuple[str, ...] = ()
    """Tags of the job, as KEY=VALUE."""

    tune: tuple[str, ...] = ()
    """Tune these flags of main.py for the highest validation accuracy, each given as NAME=LOW:HIGH or NAME=A,B,C. The
    jobs get --validation-fraction 0.1 if it is not given."""
    max_jobs: int = 10
    """With --tune, total number of jobs."""
    parallel_jobs: int = 2
    """With --tune, number of jobs that run at the same time."""
    wait: bool = True
    """Show the job's log and wait until it ends."""
    dry_run: bool = False
    """Print the request without contacting AWS."""

    def __post_init__(self) -> None:
        """Validate what can be validated without calling AWS.

        Raises:
            UsageError: with the flag, its value and what was expected.
        """
        super().__post_init__()
        defaults = TrainConfig()
        for name, reason in NOT_IN_A_JOB.items():
            if getattr(self, name) != getattr(defaults, name):
                raise UsageError(f"{flag(name)} does not apply to SageMaker: {reason}.")
        check_role(self.role)
        for name in ("instance_type", "coordinator_instance_type"):
            value = getattr(self, name)
            self._expect(name, value is None or re.fullmatch(r"ml\.[\w-]+\.\w+", value) is not None, "ml.FAMILY.SIZE")
        for name in ("instance_count", "volume_gb", "max_run_seconds", "max_jobs", "parallel_jobs", "join_seconds"):
            self._expect(name, getattr(self, name) >= 1, "a positive number")
        self._expect("num_workers", self.num_workers != 0, "at least 1, since jobs always train under Ray")
        self._expect("retries", 0 <= self.retries <= 30, "0 to 30")
        valid_prefix = re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,39}", self.job_prefix)
        self._expect("job_prefix", bool(valid_prefix), "up to 40 letters, digits and '-'")
        if self.spot and self.keep_alive_seconds:
            raise UsageError("--spot cannot be combined with --keep-alive-seconds.")
        if self.max_wait_seconds is not None:
            if not self.spot:
                raise UsageError("--max-wait-seconds requires --spot.")
            self._expect(
                "max_wait_seconds", self.max_wait_seconds >= self.max_run_seconds, "at least --max-run-seconds"
            )
        check_network(self.subnets, self.security_groups)
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
        if self.resume and not uri:
            raise UsageError(f"--resume {self.resume} requires the --checkpoint-uri of that job.")
        weights = self.init_from
        self._expect("init_from", weights is None or weights.startswith("s3://"), "s3://BUCKET/PREFIX")
        self._check_tuning()

    def _check_tuning(self) -> None:
        """Validate the flags of a search."""
        if not self.tune:
            return
        # The SDK's tuner (3.27) silently drops the first four. With the last two, all trials would share a run folder.
        for name in (
            *("coordinator_instance_type", "keep_alive_seconds", "volume_kms_key", "encrypt_traffic"),
            *("resume", "run_name"),
        ):
            if getattr(self, name):
                raise UsageError(f"--tune cannot be combined with {flag(name)}.")
        self.search_space()
        # SageMaker's tuning service starts the image's own entry point, and the newest images may lack the toolkit.
        if not self.image:
            raise UsageError("--tune requires --image with an image that includes SageMaker's training toolkit.")

    def search_space(self) -> tuple[Parameter, ...]:
        """The settings to tune.

        Raises:
            UsageError: if --tune is invalid.
        """
        try:
            return parse_space(self.tune, TrainConfig.from_dict(self.to_dict()))
        except UsageError as error:
            raise UsageError(f"--tune {error}") from error

    @property
    def has_own_data(self) -> bool:
        """Whether --data is a folder or URI, and therefore becomes a channel."""
        return self.data not in DATA_NAMES

    @property
    def spot_wait_seconds(self) -> int:
        """With --spot, the time limit for waiting plus running."""
        return self.max_wait_seconds or 2 * self.max_run_seconds


def check_network(subnets: tuple[str, ...], security_groups: tuple[str, ...]) -> None:
    """Require subnets and security groups together, as SageMaker does.

    Raises:
        UsageError: if only one of them was given.
    """
    if bool(subnets) != bool(security_groups):
        raise UsageError("--subnets and --security-groups must be used together.")


def check_role(given: str) -> str:
    """The role from the flag, or else from the environment.

    Raises:
        UsageError: if it is not the ARN of a role.
    """
    role = given or os.environ.get("SAGEMAKER_ROLE_ARN", "")
    if not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/\S+", role):
        raise UsageError(f"--role {role or '(unset)'}: expected arn:aws:iam::ACCOUNT:role/NAME.")
    return role


def hyperparameters(config: JobConfig, arguments: list[str]) -> dict[str, str]:
    """The flags of main.py that appear in the arguments, with their values from the config.

    Other flags keep main.py's defaults in the container, where the GPUs determine the number of workers. With --tune,
    the objective needs validation images.

    Raises:
        UsageError: if there would be none.
    """
    given = {argument.split("=")[0].lstrip("-").replace("_", "-") for argument in arguments if argument[:2] == "--"}
    values = {}
    for field in dataclasses.fields(TrainConfig):
        name = field.name.replace("_", "-")
        if {name, f"no-{name}"} & given and not (field.name == "data" and config.has_own_data):
            value = getattr(config, field.name)
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    if config.tune and float(values.setdefault("validation-fraction", str(VALIDATION_FRACTION))) == 0:
        raise UsageError(
            "--validation-fraction 0: expected more than 0 with --tune, since jobs are compared by these images."
        )
    return values
