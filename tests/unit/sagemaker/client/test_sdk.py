"""Contract tests of client/sdk.py against the installed SDK: each fails when the SDK changes what it relies on."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import InvalidRegionError

from sagemaker_entry.client import sdk
from sagemaker_entry.client.images import find_training_image
from sagemaker_entry.client.session import open_session
from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.client.staging import stage
from sagemaker_entry.client.trainer import build_trainer
from sagemaker_entry.client.tuning import build_tuner
from sagemaker_entry.container.job import SDK_CHANNELS
from support.command import ROOT
from vgg_ddp.flags import UsageError

ROLE = "arn:aws:iam::123456789012:role/training"
SEARCH: dict[str, Any] = {"tune": ("lr=0.1:0.2",)}


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


def test_sdk_sends_telemetry_unless_it_is_turned_off(
    telemetry: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    submit(config, open_session(config), tmp_path / "first")
    join_telemetry()
    assert not telemetry
    modules: dict[str, Any] = {"SageMaker": {"PythonSDK": {"Modules": {}}}}
    monkeypatch.setattr(sdk, "load_defaults", lambda *_: {"SchemaVersion": "1.0"} | modules)
    submit(config, open_session(config), tmp_path / "second")
    join_telemetry()
    assert telemetry


@pytest.mark.parametrize("settings", [{}, SEARCH], ids=["job", "search"])
def test_sdk_adds_no_channel_that_the_container_does_not_know(settings: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(**settings)
    request = submit(config, open_session(config), tmp_path / "source")
    channels = request.get("TrainingJobDefinition", request)["InputDataConfig"]
    assert {channel["ChannelName"] for channel in channels} <= set(SDK_CHANNELS)


@pytest.mark.parametrize("is_completed", [False, True], ids=["by the SDK alone", "completed"])
def test_tuner_drops_fields_that_are_added_to_its_request(
    is_completed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_completed:
        monkeypatch.setattr(sdk, "complete_request", lambda *_: None)
    config = config_of(
        **SEARCH,
        instance_type="ml.c5.xlarge",
        volume_kms_key="alias/disks",
        encrypt_traffic=True,
        network_isolation=False,
    )
    definition = submit(config, open_session(config), tmp_path / "source")["TrainingJobDefinition"]
    assert ("VolumeKmsKeyId" in definition["ResourceConfig"]) is is_completed
    assert ("EnableInterContainerTrafficEncryption" in definition) is is_completed
    assert ("EnableNetworkIsolation" in definition) is is_completed
    assert definition["ResourceConfig"]["InstanceType"] == "ml.c5.xlarge"


def test_key_for_local_disks_is_refused_as_a_flag_and_left_out_as_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(instance_type="ml.g5.xlarge")
    with pytest.raises(UsageError, match=r"--volume-kms-key mine: ml\.g5\.xlarge has local disks"):
        submit(dataclasses.replace(config, volume_kms_key="mine"), open_session(config), tmp_path / "first")
    (tmp_path / "config.yaml").write_text(
        "SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {ResourceConfig: {VolumeKmsKeyId: mine}}}"
    )
    monkeypatch.setenv("SAGEMAKER_ADMIN_CONFIG_OVERRIDE", str(tmp_path / "config.yaml"))
    request = submit(config, open_session(config), tmp_path / "second")
    assert "VolumeKmsKeyId" not in request["ResourceConfig"]
    assert "NOTE: VolumeKmsKeyId in the SDK's defaults file is not used: ml.g5.xlarge" in capsys.readouterr().out


def test_sdk_asks_iam_about_the_bucket_before_it_uploads(tmp_path: Path) -> None:
    config = config_of()
    session = open_session(config)
    asked: list[str] = []
    session.boto_session.events.register("before-call.iam", lambda event_name, **_: asked.append(event_name))
    submit(config, session, tmp_path / "source")
    assert set(asked) == {"before-call.iam.SimulatePrincipalPolicy"}


def test_dry_run_does_not_read_defaults_from_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", "s3://organization/config.yaml")
    with pytest.raises(UsageError, match="--dry-run does not contact AWS, so it cannot read s3://organization/config"):
        open_session(config_of())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {Volume: 3}}", "'Volume' was unexpected"),
        ("a: [", "while parsing"),
        (None, "Unable to"),
    ],
)
def test_invalid_defaults_are_a_usage_error(
    content: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content:
        (tmp_path / "config.yaml").write_text(content)
    monkeypatch.setenv("SAGEMAKER_ADMIN_CONFIG_OVERRIDE", str(tmp_path / "config.yaml"))
    with pytest.raises(UsageError, match=f"the configuration file of SageMaker's SDK is invalid: .*{reason}"):
        open_session(config_of())


def test_malformed_region_is_not_blamed_on_the_defaults() -> None:
    with pytest.raises(InvalidRegionError, match="Provided region_name 'eu west'"):
        open_session(dataclasses.replace(config_of(), region="eu west"))


def test_region_without_the_newest_image_gets_the_newest_that_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for region in ("us-gov-east-1", "cn-north-1", "us-iso-east-1", "eusc-de-east-1", "eu-isoe-west-1"):
        image, version = find_training_image(region, "ml.g5.xlarge")
        assert version == "2.13" and f".{region}." in image and "/pytorch:2.13-cu" in image
    config = dataclasses.replace(config_of(), region="us-gov-west-1")
    trainer = build_trainer(config, [], stage(tmp_path / "source"), open_session(config))
    assert "us-gov-west-1.amazonaws.com/pytorch:2.13-cu" in trainer.training_image
    assert capsys.readouterr().out == "NOTE: us-gov-west-1 has no image with torch 2.14: using torch 2.13.\n"


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
