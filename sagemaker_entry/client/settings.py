"""All settings of a job: the flags of main.py, plus those for instances, storage, and the network."""

import dataclasses
import re
from typing import ClassVar

from sagemaker_entry.client.checks.access import check_network, check_role_or_name
from sagemaker_entry.client.checks.environment import parse_environment
from sagemaker_entry.client.checks.machines import check_machine
from vgg_ddp.config import DATA_NAMES, TrainConfig
from vgg_ddp.flags import UsageError, flag, refuse_password
from vgg_ddp.search_space import VALIDATION_FRACTION, Parameter, parse_space

PROGRAM = "python sagemaker_entry/submit.py"
S3_PREFIX = r"s3://[^/]+/.+"
# Limits of CreateTrainingJob (botocore 1.43.117; the days are from the documentation of StoppingCondition).
MAX_KEEP_ALIVE_SECONDS = 21_600
MAX_RUN_SECONDS = 28 * 86_400
# Flags of main.py that do not apply to a job, and why.
NOT_IN_A_JOB = {
    "address": "the job starts its own Ray cluster",
    "storage_path": "a job stores its run folder at --checkpoint-uri",
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

    data: str = "cifar10"
    """Training data: cifar10 (downloaded by the job), sample (bundled), or a folder (uploaded) or S3 URI with Parquet
    files of images and labels."""

    role: str = ""
    """ARN or name of the IAM role that the job assumes. Default: $SAGEMAKER_ROLE_ARN, or the one in the SDK's defaults
    file; on a SageMaker notebook, its execution role."""
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
    """Keep the instances running this long for the next job (a warm pool, which is billed), at most 21,600 s."""
    max_run_seconds: int = 4 * 3600
    """Time limit for the job, at most 28 days."""
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
    network_isolation: bool | None = None
    """Give the containers no access to the network. Requires --image with everything in requirements.txt of
    sagemaker_entry, own data or the sample, and a single instance."""
    encrypt_traffic: bool | None = None
    """Encrypt traffic between the instances."""
    kms_key: str | None = None
    """KMS key for source code, uploaded data, model.tar.gz and output.tar.gz on S3. Checkpoints use the bucket's
    default encryption."""
    volume_kms_key: str | None = None
    """KMS key for the disks of the instances."""
    tags: tuple[str, ...] = ()
    """Tags of the job, as KEY=VALUE."""

    env: tuple[str, ...] = ()
    """Environment variables of the job, as NAME=VALUE, such as NCCL_DEBUG=INFO. Secrets only as ARNs."""

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
    attach: str | None = None
    """Instead of submitting a job, follow the job or search of this name from its first line to its end."""
    stop: str | None = None
    """Instead of submitting a job, stop the job or search of this name. A job then saves a checkpoint."""

    def __post_init__(self) -> None:
        """Validate what can be validated without calling AWS.

        Raises:
            UsageError: with the flag, its value and what was expected.
        """
        super().__post_init__()
        if self.attach is not None or self.stop is not None:
            self._expect_only_region()
            return
        defaults = TrainConfig()
        for name, reason in NOT_IN_A_JOB.items():
            if getattr(self, name) != getattr(defaults, name):
                raise UsageError(f"{flag(name)} does not apply to SageMaker: {reason}.")
        check_role_or_name(self.role, self.dry_run)
        self._check_machines()
        for name in ("instance_count", "volume_gb", "max_run_seconds", "max_jobs", "parallel_jobs", "join_seconds"):
            self._expect(name, getattr(self, name) >= 1, "a positive number")
        self._expect("max_run_seconds", self.max_run_seconds <= MAX_RUN_SECONDS, f"at most {MAX_RUN_SECONDS} (28 days)")
        self._expect("num_workers", self.num_workers != 0, "at least 1, since jobs always train under Ray")
        self._expect("retries", 0 <= self.retries <= 30, "0 to 30")
        valid_prefix = re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,39}", self.job_prefix)
        self._expect("job_prefix", bool(valid_prefix), "up to 40 letters, digits and '-'")
        # https://docs.aws.amazon.com/sagemaker/latest/dg/train-warm-pools.html#train-warm-pools-considerations
        for name in ("spot", "coordinator_instance_type"):
            if self.keep_alive_seconds and getattr(self, name):
                raise UsageError(f"{flag(name)} cannot be combined with --keep-alive-seconds.")
        if self.max_wait_seconds is not None:
            if not self.spot:
                raise UsageError("--max-wait-seconds requires --spot.")
            self._expect(
                "max_wait_seconds", self.max_wait_seconds >= self.max_run_seconds, "at least --max-run-seconds"
            )
        check_network(self.subnets, self.security_groups)
        self._expect("tags", all(tag.find("=") > 0 for tag in self.tags), "KEY=VALUE")
        parse_environment(self.env, is_search=bool(self.tune))
        self._expect("keep_alive_seconds", 0 <= (self.keep_alive_seconds or 0) <= MAX_KEEP_ALIVE_SECONDS,
                     f"0 to {MAX_KEEP_ALIVE_SECONDS}")  # fmt: skip
        self._expect("mlflow", self.mlflow != "local", "the ARN of a SageMaker MLflow server, or the URI of a server")
        refuse_password("--mlflow", self.mlflow)
        self._expect("image", self.image != "", "the URI of an image")
        # Empty if a shell variable is unset, which must not turn encryption with a key off.
        for name in ("kms_key", "volume_kms_key"):
            self._expect(name, getattr(self, name) != "", "a KMS key")
        bucket = self.bucket
        self._expect("bucket", bucket is None or bool(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket)),
                     "the name of a bucket, without s3://")  # fmt: skip
        self._expect("data", self.data != "auto", "cifar10, sample, or a folder or URI: with auto, a paid job without "
                     "access to the internet would train on the sample")  # fmt: skip
        is_uri = self.has_own_data and "://" in self.data
        self._expect("data", not is_uri or bool(re.fullmatch(S3_PREFIX, self.data)),
                     "a local folder, or s3://BUCKET/PREFIX")  # fmt: skip
        uri = self.checkpoint_uri
        self._expect("checkpoint_uri", uri is None or bool(re.fullmatch(S3_PREFIX, uri)), "s3://BUCKET/PREFIX")
        if self.resume and not uri:
            raise UsageError(f"--resume {self.resume} requires the --checkpoint-uri of that job.")
        weights = self.init_from
        self._expect("init_from", weights is None or weights.startswith("s3://"), "s3://BUCKET/PREFIX")
        self._check_isolation()
        self._check_tuning()

    def _expect_only_region(self) -> None:
        """Refuse every other flag with --attach or --stop."""
        command = "stop" if self.attach is None else "attach"
        # Empty if a shell variable is unset.
        self._expect(command, bool(getattr(self, command)), "the name of a job or search")
        for field in dataclasses.fields(self):
            if field.name not in (command, "region") and getattr(self, field.name) != field.default:
                raise UsageError(f"{flag(command)} cannot be combined with {flag(field.name)}, only with --region.")

    def _check_machines(self) -> None:
        for name in ("instance_type", "coordinator_instance_type"):
            value = getattr(self, name)
            if value is not None:
                self._expect(name, re.fullmatch(r"ml\.[\w-]+\.\w+", value) is not None, "ml.FAMILY.SIZE")
                check_machine(name, value, has_own_image=bool(self.image), computes=name == "instance_type")

    def _check_isolation(self) -> None:
        if not self.network_isolation:
            return
        reasons = {
            "requires --image with Ray, because the job cannot install it": not self.image,
            "requires --data with a folder, an S3 URI, or sample, because the job cannot download CIFAR-10": (
                self.data == "cifar10"
            ),
            "cannot be combined with several instances, which write checkpoints to S3 themselves": self.is_shared,
            "cannot be combined with --mlflow": bool(self.mlflow),
            "cannot be combined with --init-from": bool(self.init_from),
        }
        for reason, applies in reasons.items():
            if applies:
                raise UsageError(f"--network-isolation {reason}.")

    def _check_tuning(self) -> None:
        """Validate the flags of a search."""
        if not self.tune:
            return
        # The SDK's tuner (3.27) silently drops the first two. With the last two, all trials would share a run folder.
        for name in ("coordinator_instance_type", "keep_alive_seconds", "resume", "run_name"):
            if getattr(self, name):
                raise UsageError(f"--tune cannot be combined with {flag(name)}.")
        self.search_space()

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
    def is_shared(self) -> bool:
        """Whether the job has several instances."""
        return self.instance_count > 1 or self.coordinator_instance_type is not None

    @property
    def spot_wait_seconds(self) -> int:
        """With --spot, the time limit for waiting plus running."""
        return self.max_wait_seconds or 2 * self.max_run_seconds


def hyperparameters(config: JobConfig, arguments: list[str]) -> dict[str, str]:
    """The flags of main.py that were given: those in the arguments, and those that differ from their defaults.

    Other flags keep main.py's defaults in the container, where the GPUs determine the number of workers. With --tune,
    the objective needs validation images.

    Raises:
        UsageError: if there would be none.
    """
    given = {argument.split("=")[0].lstrip("-").replace("_", "-") for argument in arguments if argument[:2] == "--"}
    values = {}
    for field in dataclasses.fields(TrainConfig):
        name, value = field.name.replace("_", "-"), getattr(config, field.name)
        is_given = bool({name, f"no-{name}"} & given) or value != getattr(JobConfig, field.name)
        if is_given and not (field.name == "data" and config.has_own_data):
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    if config.tune and float(values.setdefault("validation-fraction", str(VALIDATION_FRACTION))) == 0:
        raise UsageError(
            "--validation-fraction 0: expected more than 0 with --tune, since jobs are compared by these images."
        )
    return values
