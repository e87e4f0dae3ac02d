"""Run as the script of a SageMaker job that starts main.py itself: another launcher's, or a plain `entry_script`.

In the jobs of sagemaker_entry/submit.py, launch.py does all of this, and main.py does not see SM_MODEL_DIR. SageMaker's
SDK and its training toolkit set the variables.
"""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.ray_environment import is_initialized
from vgg_ddp.flags import UsageError
from vgg_ddp.machine import torchrun

if TYPE_CHECKING:
    from vgg_ddp.result import RunResult

MODEL_DIR, OUTPUT_DIR, OUTPUT_DATA_DIR = "SM_MODEL_DIR", "SM_OUTPUT_DIR", "SM_OUTPUT_DATA_DIR"
# Where SageMaker restores the checkpoints of a job that it restarts.
CHECKPOINTS = Path("/opt/ml/checkpoints")
MODEL_FILES = ("model.safetensors", "config.json", "metrics.csv")
OUTPUT_FILES = ("config.json", "metrics.csv", "curves.png")


def is_job_script() -> bool:
    """Whether this process runs in a SageMaker job, which collects what is in $SM_MODEL_DIR."""
    return MODEL_DIR in os.environ


def job_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments, after a job's own defaults for the data and the run; unchanged outside of a job.

    Raises:
        UsageError: if the job has several hosts, and they cannot train together.
    """
    if not is_job_script():
        return list(arguments)
    arguments = _with_switches(arguments)
    given = {argument.partition("=")[0].lstrip("-").replace("_", "-") for argument in arguments}
    defaults = {}
    if not given & {"data", "resume"}:
        # Never `auto`: without internet access, a job would train on the bundled sample.
        defaults["data"] = os.environ.get("SM_CHANNEL_TRAINING", "cifar10")
    if not given & {"run-name", "resume"} and "TRAINING_JOB_NAME" in os.environ:
        # SageMaker restarts a job under the same name, so the restarted job resumes its run.
        defaults["run-name"] = os.environ["TRAINING_JOB_NAME"]
    hosts = json.loads(os.environ.get("SM_HOSTS", "[]"))
    if len(hosts) > 1:
        _check_hosts(len(hosts), given)
    elif "storage-path" not in given and CHECKPOINTS.is_dir():
        defaults["storage-path"] = str(CHECKPOINTS)
    return [f"--{name}={value}" for name, value in defaults.items()] + arguments


def _with_switches(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `--profile true`, as hyperparameters are passed, as `--profile`."""
    switches = {field.name for field in dataclasses.fields(TrainConfig) if isinstance(field.default, bool)}
    result: list[str] = []
    for argument in arguments:
        name = result[-1].lstrip("-").replace("_", "-") if result else ""
        if name.replace("-", "_") in switches and argument.lower() in ("true", "false"):
            result[-1] = f"--{'' if argument.lower() == 'true' else 'no-'}{name}"
        else:
            result.append(argument)
    return result


def _check_hosts(count: int, given: set[str]) -> None:
    """Check that this process does not train alone, next to others that do the same, and that all share a storage."""
    is_joined = torchrun.is_launcher() or is_initialized() or "address" in given or "RAY_ADDRESS" in os.environ
    if not is_joined:
        raise UsageError(
            f"the job has {count} hosts, and each of them would train alone: start it with sagemaker_entry/submit.py, "
            "or with a launcher that starts Ray on all of them."
        )
    if "storage-path" not in given:
        raise UsageError(f"the job has {count} hosts: give --storage-path an S3 URI, which all of them can reach.")


@contextmanager
def reported_to_job() -> Iterator[None]:
    """Write an exception's message to the job's failure file."""
    try:
        yield
    except Exception as error:
        _write_failure(str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}")
        raise


def leave_results(result: "RunResult", storage_path: str) -> None:
    """Copy the results of a finished run to where SageMaker collects them, or write why it did not finish."""
    if not is_job_script() or not torchrun.is_rank_zero():
        return
    if result.ended != "finished":
        _write_failure(_reason(result))
        return
    from vgg_ddp.run.storage import Folder

    folder = Folder.at(storage_path) / result.name
    names = set(folder.names())
    for variable, files in ((MODEL_DIR, MODEL_FILES), (OUTPUT_DATA_DIR, OUTPUT_FILES)):
        if target := os.environ.get(variable):
            Path(target).mkdir(parents=True, exist_ok=True)
            for name in names.intersection(files):
                Path(target, name).write_bytes(folder.read(name))
    print(f"  model of the job   {os.environ[MODEL_DIR]}", flush=True)


def _reason(result: "RunResult") -> str:
    if result.signal_number is not None:
        return f"stopped by {signal.Signals(result.signal_number).name}"
    failures = getattr(result.error, "worker_failures", None)
    if failures:
        from vgg_ddp.worker.failures import first_cause

        _, failure = first_cause(failures)
        return f"{type(failure).__name__}: {failure}"
    return result.message or str(result.error)


def _write_failure(reason: str) -> None:
    """Write the job's failure reason, unless there is one: SageMaker shows the start of this file."""
    folder = os.environ.get(OUTPUT_DIR)
    if is_job_script() and folder and not Path(folder, "failure").exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "failure").write_text(reason)
