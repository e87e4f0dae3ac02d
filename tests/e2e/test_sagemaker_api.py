"""Jobs submitted from Python to moto's SageMaker, and the command's --attach and --stop."""

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sagemaker_entry
from sagemaker_entry import attach_job, attach_search, submit, submit_job, submit_search
from sagemaker_entry.api import Job, Search
from sagemaker_entry.client.errors import NotCompletedError, WaitError
from sagemaker_entry.client.role import find_role
from sagemaker_entry.client.session import open_session
from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.jobs import follow
from sagemaker_entry.jobs.description import run_name
from support.fake_sagemaker import REGION, ROLE, JobState, Service, service
from support.s3_server import BUCKET, client
from vgg_ddp import UsageError
from vgg_ddp.run.files import COLUMNS, write_metrics
from vgg_ddp.run.storage import Folder

pytestmark = pytest.mark.e2e
MACHINE: dict[str, Any] = {"role": ROLE, "region": REGION, "bucket": BUCKET, "instance_type": "ml.c5.xlarge"}
NUMBERS = itertools.count()
COMMAND = "python sagemaker_entry/submit.py"
DENIED = ("AccessDeniedException", "User: me is not authorized")


@pytest.fixture(scope="module")
def running(sdk_environment: dict[str, str]) -> Iterator[Service]:
    with service(sdk_environment) as service_of_module:
        yield service_of_module


@pytest.fixture
def sagemaker(running: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service, for this process, whose followers do not wait."""
    for name, value in (running.environment | {"AWS_ENDPOINT_URL": running.endpoint}).items():
        monkeypatch.setenv(name, value)
    # The region must come from the settings; moto answers unsupported calls with status 500.
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("SAGEMAKER_ROLE_ARN", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(follow, "LATE_LINES_SECONDS", 0.0)
    running.states, running.rejections, running.stopped = [], {}, []
    running.choose = lambda _call, _environment: None
    return running


@pytest.fixture
def job(sagemaker: Service) -> Job:
    """A job that was submitted earlier; moto says that it has completed."""
    name = f"job-{next(NUMBERS)}"
    hyperparameters = {"epochs": "4", "profile": "false", "storage-path": f"s3://{BUCKET}/checkpoints/{name}"}
    training = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/tiny/"}}
    sagemaker.create_job(
        name,
        HyperParameters=hyperparameters,
        InputDataConfig=[{"ChannelName": "training", "DataSource": training}],
        Tags=[{"Key": "team", "Value": "vision"}, {"Key": "aws:owner", "Value": "aws"}],
    )
    return Job(name, REGION)


Main = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """Calls the command; returns its exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["submit.py", *arguments])
        try:
            return submit.main()
        except SystemExit as request:
            return int(str(request.code))

    return call


@pytest.mark.usefixtures("sagemaker")
def test_all_settings_count_and_the_process_stays_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    job = submit_job(**MACHINE, spot=True, lr=0.2, batch_size=256, epochs=15, profile=False, tags=["team=vision"])
    assert (dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    described = job.describe()
    # The last two of those that were given are equal to their defaults.
    given = {"lr": "0.2", "batch-size": "256", "epochs": "15", "profile": "false"}
    assert described["HyperParameters"] == given | {"data": "cifar10"}
    assert described["EnableManagedSpotTraining"] is True
    printed = capsys.readouterr().out
    assert "Machines:  1 x ml.c5.xlarge, at most 4 h on spot" in printed
    assert printed.splitlines()[-1] == f"Job:       {job.name}"
    assert attach_job(job.name, REGION) == job


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting epoch. Did you mean epochs?"),
        ({"epochs": 0}, "--epochs 0: expected a positive number."),
        ({"wait": True}, r"wait is only for the command: call follow\(\) of the job."),
        ({"tune": ["lr=0.1:0.2"], "image": "mine"}, "use submit_search"),
        ({"role": "no-such-role"}, "--role no-such-role: its ARN was not found; use the ARN instead."),
        ({"role": "not a role"}, "--role not a role: expected arn:aws:iam::ACCOUNT:role/NAME."),
        ({"role": ""}, r"--role \(unset\): expected arn:aws:iam::ACCOUNT:role/NAME."),
        ({"data": "/nowhere"}, "--data /nowhere does not exist"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.usefixtures("sagemaker")
def test_bad_setting_is_a_usage_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        submit_job(**MACHINE | settings)


def test_role_may_be_a_name_or_that_of_the_notebook(
    sagemaker: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    iam = client(sagemaker.endpoint, "iam", REGION)
    created = iam.create_role(RoleName="my-role", Path="/service-role/", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    assert submit_job(**MACHINE | {"role": "my-role"}).describe()["RoleArn"] == created
    # The file that SageMaker puts on notebook instances and in Studio; the SDK reads it, too.
    file = tmp_path / "resource-metadata.json"
    file.write_text(f'{{"ResourceName": "me", "ExecutionRoleArn": "{ROLE}-of-notebook"}}')
    monkeypatch.setattr("sagemaker_entry.client.role.NOTEBOOK_FILE", file)
    monkeypatch.setattr("sagemaker.core.helper.session_helper.NOTEBOOK_METADATA_FILE", str(file))
    config = JobConfig(**MACHINE | {"role": ""})
    assert find_role(config.role, open_session(config).boto_session) == f"{ROLE}-of-notebook"


def test_log_of_every_host_and_every_restart_is_shown(
    sagemaker: Service, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    sagemaker.states = [
        JobState("InProgress", "Training", {"algo-1-100": ["first", "[a/b] 50%"], "algo-2-100": ["second host"]}),
        # After an interruption, the job runs on another machine with a new log stream.
        JobState("Completed", "Completed", {"algo-1-100": ["interrupted"], "algo-1-200": ["resumed", "last"]}),
    ]
    job.follow()
    printed = capsys.readouterr()
    log = ["Status:    Training", "first", "[a/b] 50%", "second host", "interrupted", "resumed", "last"]
    assert printed.out.splitlines()[:-1] == [*log, "Status:    Completed"]
    assert printed.out.splitlines()[-1].startswith("Model:     s3://bucket/")
    assert not printed.err


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (
            JobState("Failed", "Failed", {"algo-1-100": ["Traceback"]}, "AlgorithmError: the images differ"),
            "AlgorithmError: the images differ",
        ),
        (JobState("Stopped", "MaxRuntimeExceeded", {"algo-1-100": ["Traceback"]}), "MaxRuntimeExceeded"),
    ],
    ids=["failed", "stopped"],
)
def test_failed_or_stopped_job_is_an_error_also_of_the_command_that_attaches(
    end: JobState, reason: str, sagemaker: Service, job: Job, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    sagemaker.states = [end]
    with pytest.raises(NotCompletedError, match=f"^the job did not complete: {reason}$"):
        job.follow()
    assert capsys.readouterr().out == f"Traceback\nStatus:    {end.status}\n"
    assert main("--attach", job.name, "--region", REGION) == 1
    printed = capsys.readouterr()
    assert printed.out == f"Traceback\nStatus:    {end.status}\n"
    assert printed.err == f"error: the job did not complete: {reason}\n"


@pytest.mark.parametrize("call", ["DescribeTrainingJob", "GetLogEvents"])
def test_rejected_call_says_that_the_job_may_still_be_running(call: str, sagemaker: Service, job: Job) -> None:
    sagemaker.states = [JobState("InProgress", "Training", {"algo-1-100": ["first"]})]
    sagemaker.rejections[call] = DENIED
    error = rf"cannot follow {job.name}, which may still be running: .*AccessDenied.* calling the {call} operation"
    with pytest.raises(WaitError, match=error):
        job.follow()


def test_ctrl_c_shows_how_to_follow_and_stop_the_job_which_continues(
    sagemaker: Service, job: Job, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    sagemaker.states = [JobState("InProgress", "Training")] * 2

    def interrupt(call: str, _environment: dict[str, Any]) -> None:
        if call == "DescribeLogStreams":
            os.kill(os.getpid(), signal.SIGINT)

    sagemaker.choose = interrupt
    assert main("--attach", job.name, "--region", REGION) == 130
    assert capsys.readouterr().err.splitlines() == [
        "",
        f"Stopped following {job.name}, which continues.",
        f"Follow it: {COMMAND} --attach {job.name} --region {REGION}",
        f"Stop it:   {COMMAND} --stop {job.name} --region {REGION}",
    ]
    assert not sagemaker.stopped


def test_job_is_stopped_unless_it_has_ended(
    sagemaker: Service, job: Job, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    job.stop()
    assert capsys.readouterr().out == "Status:    Completed\n"
    sagemaker.states = [JobState("InProgress", "Training")]
    job.stop()
    assert main("--stop", job.name, "--region", REGION) == 0
    assert capsys.readouterr().out == "Status:    Stopping\nStatus:    Stopping\n"
    assert sagemaker.stopped == [job.name, job.name]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--attach", "job-7", "--epochs", "3"], "--attach cannot be combined with --epochs, only with --region."),
        (["--stop", "job-7", "--attach", "job-7"], "--attach cannot be combined with --stop, only with --region."),
        (["--attach", "job-7", "--region", REGION], f"job-7: there is no job or search of this name in {REGION}."),
        (["--attach", ""], "--attach : expected the name of a job or search."),
        (["--stop", "job-7"], "--region: no AWS region is configured; give one, such as --region us-east-1."),
    ],
    ids=["flag", "both", "unknown", "empty", "region"],
)
@pytest.mark.usefixtures("sagemaker")
def test_bad_input_to_attach_or_stop_is_one_line_and_exit_code_2(
    flags: list[str], error: str, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*flags) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_resumed_job_has_the_settings_and_checkpoints_of_the_first_and_the_changes(
    sagemaker: Service, job: Job
) -> None:
    first = job.describe()
    sagemaker.states = [JobState("InProgress", "Training")]
    with pytest.raises(UsageError, match=f"{job.name} still runs: stop it before you resume it."):
        job.resume()
    sagemaker.states = [JobState("Failed", "Failed")]
    # As after a restart of the notebook.
    resumed = attach_job(job.name, REGION).resume(epochs=8)
    second = resumed.describe()
    assert second["HyperParameters"] == first["HyperParameters"] | {"epochs": "8", "resume": job.name}
    for name in ("CheckpointConfig", "ResourceConfig", "RoleArn", "StoppingCondition"):
        assert second[name] == first[name], name
    (data,) = [channel for channel in second["InputDataConfig"] if channel["ChannelName"] == "training"]
    assert data["DataSource"]["S3DataSource"]["S3Uri"] == "s3://bucket/tiny/"
    tags = client(sagemaker.endpoint, "sagemaker", REGION).list_tags(ResourceArn=second["TrainingJobArn"])["Tags"]
    assert tags == [{"Key": "team", "Value": "vision"}]
    # The next one continues the same run.
    assert run_name(second) == job.name


def test_metrics_are_those_of_the_run_folder(sagemaker: Service, job: Job, tmp_path: Path) -> None:
    assert job.metrics() == []
    rows = [dict.fromkeys(COLUMNS, float(epoch)) for epoch in (1, 2)]
    write_metrics(Folder.at(str(tmp_path)), rows)
    key = f"checkpoints/{job.name}/{job.name}/metrics.csv"
    client(sagemaker.endpoint).upload_file(str(tmp_path / "metrics.csv"), BUCKET, key)
    assert job.metrics() == rows


def test_model_is_deployed_with_the_role_of_the_job_and_the_endpoint_is_deleted(sagemaker: Service, job: Job) -> None:
    endpoint = job.deploy("my-vgg")
    api = client(sagemaker.endpoint, "sagemaker", REGION)
    assert api.describe_endpoint(EndpointName="my-vgg")["EndpointStatus"] == "InService"
    endpoint.delete()
    assert api.list_endpoints()["Endpoints"] == []
    with pytest.raises(UsageError, match="--endpoint my vgg: expected"):
        job.deploy("my vgg")


def test_search_is_followed_and_names_its_best_job(sagemaker: Service) -> None:
    search = submit_search(**MACHINE, tune=["lr=0.1:0.2"], image="mine")
    assert attach_search(search.name, REGION) == search == Search(search.name, REGION)
    with pytest.raises(UsageError, match="is a search: use attach_search"):
        attach_job(search.name, REGION)
    assert search.best_job() == Job(search.describe()["BestTrainingJob"]["TrainingJobName"], REGION)
    sagemaker.rejections["DescribeHyperParameterTuningJob"] = DENIED
    with pytest.raises(WaitError, match=rf"cannot follow {search.name}, which may still be running: "):
        search.follow()


def test_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'sagemaker_entry' has no attribute 'submit_jobs'"):
        sagemaker_entry.submit_jobs  # noqa: B018
