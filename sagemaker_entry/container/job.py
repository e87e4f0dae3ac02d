"""The job's hyperparameters, channels and name, as flags of main.py.

Hyperparameters are named like flags of main.py, without the leading hyphens. They are read from SageMaker's file, since
only some images also pass them on the command line.
"""

import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagemaker_entry.container.outcome import BAD_INPUT, JobError
from sagemaker_entry.contract import DATA_CHANNEL, SECRET_FILE, decode

# Channels that the SDK (3.27) adds for the source code and for its own scripts; test_sdk.py checks them.
SDK_CHANNELS = ("code", "sm_drivers")


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
    """A run of main.py, in the folder `storage_path`/`run_name`."""

    flags: dict[str, str]

    @property
    def storage_path(self) -> str:
        return self.flags["storage-path"]

    @property
    def run_name(self) -> str:
        return self.flags.get("resume") or self.flags["run-name"]

    def command_line(self) -> list[str]:
        """The flags in the form that main.py expects."""
        switches = {"true": "--{}", "false": "--no-{}"}
        return [switches.get(value.lower(), f"--{{}}={value}").format(name) for name, value in self.flags.items()]


def read_job(paths: Paths, job_name: str, host_count: int) -> Job:
    """The job's hyperparameters, with defaults from its channels, name and folders.

    Raises:
        JobError: if a data channel has the wrong name, or several hosts have no shared storage.
    """
    given: dict[str, Any] = json.loads((paths.config / "hyperparameters.json").read_text())
    flags = {
        name.replace("_", "-"): decode(value)
        for name, value in given.items()
        # Added by older images and the tuner, such as sagemaker_program and _tuning_objective_metric.
        if not name.startswith(("sagemaker_", "_"))
    }
    if flags.get("data", "auto") == "auto" and (data := _data(paths, flags)):
        flags["data"] = data
    flags.setdefault("data-dir", "/tmp/cifar10")
    if "storage-path" not in flags:
        if host_count > 1:
            raise JobError(
                BAD_INPUT,
                f"{host_count} hosts need the hyperparameter storage-path, an S3 URI (submit.py sets it): "
                "/opt/ml/checkpoints is a different folder on each host",
            )
        flags["storage-path"] = str(paths.checkpoints)
    if "resume" not in flags:
        # SageMaker restarts a job under the same name, so the restarted job resumes its run.
        flags.setdefault("run-name", job_name)
    return Job(flags)


def _data(paths: Paths, flags: dict[str, str]) -> str | None:
    """The images to train on if the job does not name them; None if a run to resume does.

    Never `auto`: without internet access, a job would train on the bundled sample, and end as if all were well.
    """
    channels = json.loads((paths.config / "inputdataconfig.json").read_text())
    if DATA_CHANNEL in channels:
        return str(paths.channels / DATA_CHANNEL)
    foreign = [name for name in channels if name not in SDK_CHANNELS]
    if foreign:
        raise JobError(
            BAD_INPUT,
            f"the job has the data channel {', '.join(foreign)}: expected one named {DATA_CHANNEL}, with "
            "Parquet files of a training and a test split",
        )
    return None if "resume" in flags else "cifar10"


def derive_token(secret_file: Path, job_name: str, host_count: int) -> str:
    """Ray's token for this job: the same on all hosts, and not in the job's description.

    It is derived from random bytes that submit.py stores with the source files, so only those who can read these on S3
    know it, and from the job's name, so that the jobs of a search have different tokens.

    Raises:
        JobError: if several hosts have no shared secret.
    """
    if secret_file.is_file():
        return hmac.digest(secret_file.read_bytes(), job_name.encode(), "sha256").hex()
    if host_count == 1:
        return secrets.token_hex(32)
    raise JobError(
        BAD_INPUT,
        f"{host_count} hosts need the file sagemaker_entry/{SECRET_FILE} with 32 random bytes among the job's source "
        "files: submit.py creates it",
    )
