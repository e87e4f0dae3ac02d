"""What the job was asked to do: its hyperparameters, channels and name, as flags of main.py.

Hyperparameters are the flags of main.py without the leading hyphens. They are read from SageMaker's own file, not from
the command line, which carries them only in some images.
"""

import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outcome import BAD_INPUT, JobError

DATA_CHANNEL = "training"
# Channels that the SDK adds for the source code and for its own scripts.
SDK_CHANNELS = ("code", "sm_drivers")
# Written by submit.py next to this file: every host of the job has it, and the job's description does not.
SECRET_FILE = "job-secret"


@dataclass(frozen=True)
class Paths:
    """SageMaker's folders."""

    root: Path = Path("/opt/ml")

    @property
    def config(self) -> Path:
        return self.root / "input" / "config"

    @property
    def channels(self) -> Path:
        return self.root / "input" / "data"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def failure(self) -> Path:
        return self.root / "output" / "failure"


@dataclass(frozen=True)
class Job:
    """A run of main.py: its flags, and where its run folder is (`resume` or `run_name`, in `storage_path`)."""

    flags: dict[str, str]

    @property
    def storage_path(self) -> str:
        return self.flags["storage-path"]

    @property
    def run_name(self) -> str:
        return self.flags.get("resume") or self.flags["run-name"]

    def command_line(self) -> list[str]:
        """The flags, as main.py takes them."""
        switches = {"true": "--{}", "false": "--no-{}"}
        return [switches.get(value.lower(), f"--{{}}={value}").format(name) for name, value in self.flags.items()]


def read_job(paths: Paths, job_name: str, host_count: int) -> Job:
    """The job's hyperparameters, completed by what SageMaker says elsewhere.

    Raises:
        JobError: if there is no data in the channel, or no storage that several hosts share.
    """
    given: dict[str, Any] = json.loads((paths.config / "hyperparameters.json").read_text())
    flags = {
        name.replace("_", "-"): decode(value)
        for name, value in given.items()
        # What older images and the tuner add for themselves: sagemaker_program, _tuning_objective_metric.
        if not name.startswith(("sagemaker_", "_"))
    }
    flags.setdefault("data", _data(paths))
    flags.setdefault("data-dir", "/tmp/cifar10")
    if "storage-path" not in flags:
        if host_count > 1:
            raise JobError(
                BAD_INPUT,
                f"{host_count} hosts need the hyperparameter storage-path, an S3 URI: /opt/ml/checkpoints is another "
                "folder on each host (submit.py sets it)",
            )
        flags["storage-path"] = str(paths.checkpoints)
    if "resume" not in flags:
        # The name stays the same when SageMaker restarts the job: so the run resumes.
        flags.setdefault("run-name", job_name)
    return Job(flags)


def decode(value: object) -> str:
    """A hyperparameter as it was before `encode` (and before the SDK's tuner, which quotes choices as JSON)."""
    while isinstance(value, str) and len(value) > 1 and value.startswith('"') and value.endswith('"'):
        value = json.loads(value)
    return str(value)


def encode(value: str) -> str:
    """A hyperparameter's value that survives the way into the container.

    The SDK's scripts there decode JSON once, then write `export SM_HP_NAME='value'` for bash: an apostrophe would end
    the quotes, and the rest would be run. The service itself refuses line breaks. JSON twice has neither.
    """
    if value.isprintable() and "'" not in value:
        return value
    once = json.dumps(value).replace("'", "\\u0027")
    return json.dumps(once)


def _data(paths: Paths) -> str:
    channels = json.loads((paths.config / "inputdataconfig.json").read_text())
    if DATA_CHANNEL in channels:
        return str(paths.channels / DATA_CHANNEL)
    foreign = [name for name in channels if name not in SDK_CHANNELS]
    if foreign:
        raise JobError(
            BAD_INPUT,
            f"the job has the data channel {', '.join(foreign)}: expected one called {DATA_CHANNEL}, with "
            "train*.parquet and test*.parquet",
        )
    return "auto"


def derive_token(secret_file: Path, job_name: str, host_count: int) -> str:
    """Ray's token for this job: the same on all of its hosts, and in none of SageMaker's descriptions.

    It is derived from random bytes that submit.py puts among the source files, so that only those who may read them on
    S3 could know it; the job's name makes it another one for each job of a tuner.

    Raises:
        JobError: if several hosts have no secret in common.
    """
    if secret_file.is_file():
        return hmac.digest(secret_file.read_bytes(), job_name.encode(), "sha256").hex()
    if host_count == 1:
        return secrets.token_hex(32)
    raise JobError(
        BAD_INPUT,
        f"{host_count} hosts need sagemaker_entry/{SECRET_FILE} among the job's source files, some 32 random bytes: "
        "submit.py puts it there",
    )
