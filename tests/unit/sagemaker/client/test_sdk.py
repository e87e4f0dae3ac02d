"""Contract tests of client/sdk.py against the installed SDK: each fails when the SDK changes what it relies on."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sagemaker_entry.client import sdk
from sagemaker_entry.client.session import open_session
from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.client.staging import stage
from sagemaker_entry.client.trainer import build_trainer
from sagemaker_entry.client.tuning import build_tuner
from sagemaker_entry.container.job import SDK_CHANNELS
from support.command import ROOT

ROLE = "arn:aws:iam::123456789012:role/training"
SEARCH: dict[str, Any] = {"tune": ("lr=0.1:0.2",), "image": "mine"}


@pytest.fixture(autouse=True)
def unreachable_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint where nothing listens, so that a request that is sent fails."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # `open_session` sets it for the whole process.
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "true")


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that the SDK sends to report its use, none of which leaves this machine."""
    sent: list[Any] = []
    monkeypatch.setattr("requests.get", lambda *arguments, **_: sent.append(arguments))
    return sent


def config_of(**settings: Any) -> JobConfig:
    return JobConfig(role=ROLE, region="us-east-1", dry_run=True, **settings)


def submit(config: JobConfig, session: Any, source: Path) -> dict[str, Any]:
    """The request that the SDK would send."""
    trainer = build_trainer(config, [], stage(source), session)
    with pytest.raises(sdk.DryRunError) as caught:
        if config.tune:
            build_tuner(config, trainer).tune(wait=False)
        else:
            trainer.train(wait=False, logs=False)
    return caught.value.request


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "TrainingJobName"), (SEARCH, "HyperParameterTuningJobName")],
    ids=["job", "search"],
)
def test_sdk_submits_through_the_session_it_was_given(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    config = config_of(**settings)
    session = open_session(config)
    submission = sdk.Submission(session.boto_session)
    request = submit(config, session, tmp_path / "source")
    assert submission.name and submission.name == request[name]


def test_large_uploads_of_a_dry_run_are_answered_locally(tmp_path: Path) -> None:
    session = open_session(config_of())
    # Larger than boto3's threshold of 8 MB for uploads in parts.
    file = tmp_path / "data" / "large"
    file.parent.mkdir()
    file.write_bytes(bytes(20 * 2**20))
    uri = session.upload_data(str(file.parent), key_prefix="large")
    assert uri == "s3://sagemaker-us-east-1-123456789012/large"


def test_sdk_checks_the_role_unless_the_variable_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(config_of())
    source = stage(tmp_path / "source")
    build_trainer(config_of(), [], source, session)
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "true")
    with pytest.raises(sdk.UnansweredCallError, match=r"cannot answer iam\.SimulatePrincipalPolicy"):
        build_trainer(config_of(), [], source, session)


def join_telemetry() -> None:
    """Wait for the threads in which the SDK sends it."""
    for thread in threading.enumerate():
        if "telemetry" in thread.name:
            thread.join(30)


def test_dry_run_sends_no_telemetry(telemetry: list[Any], tmp_path: Path) -> None:
    config = config_of()
    submit(config, open_session(config), tmp_path / "source")
    join_telemetry()
    assert not telemetry


def test_sdk_sends_telemetry_by_default(telemetry: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "config_without_telemetry", dict)
    config = config_of()
    submit(config, open_session(config), tmp_path / "source")
    join_telemetry()
    assert telemetry


@pytest.mark.parametrize("settings", [{}, SEARCH], ids=["job", "search"])
def test_sdk_adds_no_channel_that_the_container_does_not_know(settings: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(**settings)
    request = submit(config, open_session(config), tmp_path / "source")
    channels = request.get("TrainingJobDefinition", request)["InputDataConfig"]
    assert {channel["ChannelName"] for channel in channels} <= set(SDK_CHANNELS)


def test_tuner_drops_the_settings_that_submit_rejects_with_tune(tmp_path: Path) -> None:
    dropped = config_of(keep_alive_seconds=60, volume_kms_key="alias/disks", encrypt_traffic=True)
    session = open_session(dropped)
    trainer = build_trainer(dropped, [], stage(tmp_path / "source"), session)
    with pytest.raises(sdk.DryRunError) as caught:
        build_tuner(config_of(**SEARCH), trainer).tune(wait=False)
    definition = caught.value.request["TrainingJobDefinition"]
    assert not {"KeepAlivePeriodInSeconds", "VolumeKmsKeyId"} & set(definition["ResourceConfig"])
    assert "EnableInterContainerTrafficEncryption" not in definition


WITHOUT_SDK = """
import runpy, sys
sys.modules.update(dict.fromkeys(("boto3", "botocore", "sagemaker")))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("program", "flags"), [("submit.py", ()), ("deploy.py", ("--job", "my-job"))])
def test_missing_sdk_is_one_line_with_the_install_command(program: str, flags: tuple[str, ...]) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_SDK, str(ROOT / "sagemaker_entry" / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    result = run("--role", ROLE, *flags)
    assert result.returncode == 2, result.stderr
    install = "pip install -r requirements.txt -c constraints.txt"
    assert result.stderr == f"error: SageMaker's SDK is not installed: run {install}.\n"
    result = run("--help")
    assert result.returncode == 0, result.stderr
    assert "--instance-type" in result.stdout
