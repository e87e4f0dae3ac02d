import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from sagemaker_entry.client.settings import JobConfig, hyperparameters
from sagemaker_entry.client.trainer import METRICS, checkpoint_uri
from sagemaker_entry.client.tuning import parameter_range
from sagemaker_entry.container import outcome
from sagemaker_entry.contract import encode
from sagemaker_entry.submission import describe
from support.command import ROOT
from vgg_ddp.flags import UsageError, parse_flags
from vgg_ddp.run.files import Row
from vgg_ddp.run.summary import format_row

ROLE = "arn:aws:iam::123456789012:role/training"
TUNE = ("--tune", "lr=0.1:0.2")


def config_of(*flags: str) -> JobConfig:
    return parse_flags(JobConfig, ["--role", ROLE, *flags], "submit")


def test_metrics_match_the_lines_that_a_job_prints(make_rows: Callable[[int], list[Row]]) -> None:
    row = make_rows(3)[2] | {"loss": 1.25, "train_accuracy": 0.5, "test_accuracy": 0.0625, "images_per_second": 12345.6}
    line = format_row(row, 15)
    found = {name: re.search(regex, line) for name, regex in METRICS.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    expected = {"train_loss": 1.25, "train_accuracy": 50.0, "test_accuracy": 6.25}
    assert values == expected | {"epoch_seconds": float(f"{row['seconds']:.1f}")}


def test_metrics_do_not_match_the_summary() -> None:
    summary = "  training loss      3.0155\n  test accuracy      16.20% (best 16.20%, epoch 1)"
    assert not any(re.search(regex, summary) for regex in METRICS.values())


def test_only_flags_that_were_given_become_hyperparameters() -> None:
    flags = ["--num-workers", "4", "--batch_size=64", "--no-profile", "--instance-count", "2", "--spot"]
    assert hyperparameters(config_of(*flags), flags) == {"num-workers": "4", "batch-size": "64", "profile": "false"}


def test_values_given_in_python_become_hyperparameters() -> None:
    config = JobConfig(role=ROLE, lr=0.2, profile=True, epochs=15, instance_count=2)
    assert hyperparameters(config, []) == {"lr": "0.2", "profile": "true"}
    # Named although equal to its default, which matters when a run is resumed.
    assert hyperparameters(config, ["--epochs"]) == {"epochs": "15", "lr": "0.2", "profile": "true"}


def test_own_data_becomes_a_channel_not_a_hyperparameter() -> None:
    flags = ["--data", "s3://bucket/images"]
    assert hyperparameters(config_of(*flags), flags) == {}
    assert hyperparameters(config_of("--data", "sample"), ["--data", "sample"]) == {"data": "sample"}


def test_machines_and_time_limit_are_described() -> None:
    text = describe(config_of("--instance-count", "3", "--spot", "--max-run-seconds", "5400"))
    assert text == "3 x ml.g5.xlarge, at most 1.5 h on spot instances, including waiting at most 3 h"
    text = describe(config_of("--keep-alive-seconds", "600"))
    assert text == "1 x ml.g5.xlarge, at most 4 h, then kept running (and billed) for up to 600 s"
    text = describe(config_of("--coordinator-instance-type", "ml.m5.large"))
    assert text == "1 x ml.m5.large + 1 x ml.g5.xlarge, at most 4 h"
    assert describe(config_of(*TUNE)).startswith("10 jobs, 2 at a time, each 1 x ml.g5.xlarge")


def test_jobs_of_a_search_have_validation_images() -> None:
    assert hyperparameters(config_of(*TUNE), list(TUNE)) == {"validation-fraction": "0.1"}
    given = (*TUNE, "--validation-fraction", "0.2")
    assert hyperparameters(config_of(*given), list(given)) == {"validation-fraction": "0.2"}
    none = (*TUNE, "--validation-fraction", "0")
    with pytest.raises(UsageError, match="--validation-fraction 0: expected more than 0 with --tune"):
        hyperparameters(config_of(*none), list(none))


@pytest.mark.parametrize(
    "flag", [["--keep-alive-seconds", "60"], ["--coordinator-instance-type", "ml.m5.large"]], ids=lambda flag: flag[0]
)
def test_flags_that_the_tuner_drops_are_rejected_with_tune(flag: list[str]) -> None:
    with pytest.raises(UsageError, match=f"--tune cannot be combined with {flag[0]}."):
        config_of(*TUNE, *flag)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("lr=0.2:0.1", "--tune lr=0.2:0.1: expected LOW:HIGH with LOW below HIGH."),
        ("lr=0:0.2", "--tune search space: --lr 0.0: expected a positive number."),
        ("speed=1:2", "--tune speed=1:2: unknown flag --speed."),
        ("epochs=1:2", "--tune epochs=1:2: --epochs cannot be tuned."),
    ],
)
def test_invalid_search_is_rejected(search: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_of("--tune", search)


def test_number_of_workers_is_validated_only_if_given() -> None:
    assert config_of("--min-workers", "8").min_workers == 8
    assert config_of("--batch-size", "50").batch_size == 50
    with pytest.raises(UsageError, match="--batch-size 50 cannot be split evenly over 3 workers"):
        config_of("--batch-size", "50", "--num-workers", "3")


@pytest.mark.parametrize(
    "flags",
    [
        ("--tags", "=x"),
        ("--tags", "x"),
        ("--keep-alive-seconds", "-5"),
        ("--keep-alive-seconds", "21601"),
        ("--max-run-seconds", "2419201"),
        ("--data", "file:///data"),
        ("--data", "s3:///data"),
        ("--data", "s3://bucket"),
        ("--bucket", "s3://mine"),
        ("--bucket", "Mine_1"),
        ("--image", ""),
    ],
)
def test_values_that_aws_would_reject_are_rejected_first(flags: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"{flags[0]} .*expected "):
        config_of(*flags)


def test_integer_ranges_stay_integers_and_wide_ranges_are_logarithmic() -> None:
    rate, size, choice, switch = map(
        parameter_range,
        config_of("--tune", "lr=0.001:0.1", "batch_size=64:128", "precision=fp32,bf16",
                  "fast-convolutions=true,false").search_space(),
    )  # fmt: skip
    assert (type(rate).__name__, rate.scaling_type) == ("ContinuousParameter", "Logarithmic")
    assert (type(size).__name__, size.scaling_type) == ("IntegerParameter", "Linear")
    assert choice.values == ["fp32", "bf16"]
    assert switch.values == ["true", "false"]


def test_isolated_job_with_everything_in_its_image_is_accepted() -> None:
    assert config_of("--network-isolation", "--image", "mine", "--data", "sample").network_isolation


def test_exit_code_tables_are_complete() -> None:
    text = (ROOT / "sagemaker_entry" / "launch.py").read_text()
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    codes = {value for name, value in vars(outcome).items() if name[0].isupper() and isinstance(value, int)}
    assert table == codes - {outcome.FAILURE_CHARACTERS}
    page = (ROOT / "docs" / "sagemaker.md").read_text()
    assert table == {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}


def test_help_lists_the_flags_of_main_and_of_the_job() -> None:
    command = [sys.executable, str(ROOT / "sagemaker_entry" / "submit.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, result.stderr
    for flag in ("--epochs", "--batch-size", "--instance-type", "--spot", "--tune", "--dry-run"):
        assert flag in result.stdout


def test_checkpoint_uri_of_a_job_is_where_its_run_is_stored() -> None:
    several = {"storage-path": encode("s3://b/it's")}
    assert checkpoint_uri(several, "s3://b/it's/hosts") == "s3://b/it's"
    assert checkpoint_uri({"epochs": "1"}, "s3://b/single") == "s3://b/single"


def test_local_weights_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"--init-from runs/first: expected s3://BUCKET"):
        config_of("--init-from", "runs/first")
    assert config_of("--init-from", "s3://bucket/runs/first").init_from == "s3://bucket/runs/first"


BAD_INPUT = {
    "--role a/b": "--role a/b: expected arn:aws:iam::ACCOUNT:role/NAME.",
    "--role x --dry-run": "--role x: expected arn:aws:iam::ACCOUNT:role/NAME.",
    "--epochs 0": "--epochs 0: expected a positive number.",
    "--instance-type g5.xlarge": "--instance-type g5.xlarge: expected ml.FAMILY.SIZE.",
    "--address 1.2.3.4:6379": "--address does not apply to SageMaker: the job starts its own Ray cluster.",
    "--max-wait-seconds 5": "--max-wait-seconds requires --spot.",
    "--spot --max-wait-seconds 5": "--max-wait-seconds 5: expected at least --max-run-seconds.",
    "--spot --keep-alive-seconds 60": "--spot cannot be combined with --keep-alive-seconds.",
    "--coordinator-instance-type ml.m5.large --keep-alive-seconds 60": (
        "--coordinator-instance-type cannot be combined with --keep-alive-seconds."
    ),
    "--kms-key=": "--kms-key : expected a KMS key.",
    "--volume-kms-key=": "--volume-kms-key : expected a KMS key.",
    "--resume old": "--resume old requires the --checkpoint-uri of that job.",
    "--security-groups sg-1": "--subnets and --security-groups must be used together.",
    "--tune lr=0.1:0.2 --run-name mine": "--tune cannot be combined with --run-name.",
    "--tune lrr=1:2": "--tune lrr=1:2: unknown flag --lrr. Did you mean lr?",
    "--num-workers 3 --batch-size 8": "--batch-size 8 cannot be split evenly over 3 workers: use --batch-size 6 or 9.",
    "--data auto": "--data auto: expected cifar10, sample, or a folder or URI: with auto, a paid job without access to",
    "--mlflow local": "--mlflow local: expected the ARN of a SageMaker MLflow server, or the URI of a server.",
    "--network-isolation": "--network-isolation requires --image with Ray, because the job cannot install it.",
    "--network-isolation --image mine": "--network-isolation requires --data with a folder, an S3 URI, or sample",
    "--network-isolation --image mine --data sample --instance-count 2": (
        "--network-isolation cannot be combined with several instances"
    ),
    "--instance-cuont 2": "unknown flag --instance-cuont. Did you mean --instance-count?",
}


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_names_the_flag_and_what_was_expected(flags: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(*flags.split())
    assert BAD_INPUT[flags] in str(caught.value)
