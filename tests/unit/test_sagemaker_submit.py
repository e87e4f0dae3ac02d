import re
import subprocess
import sys
from collections.abc import Callable

import pytest

import outcome
from command import ROOT
from settings import JobConfig, hyperparameters
from submit import METRICS, describe
from tuning import parameter_range
from vgg_ddp.flags import UsageError, parse_flags
from vgg_ddp.report import Row, format_row

ROLE = "arn:aws:iam::123456789012:role/training"
TUNE = ("--image", "mine", "--tune", "lr=0.1:0.2")


def config_of(*flags: str) -> JobConfig:
    return parse_flags(JobConfig, ["--role", ROLE, *flags], "submit")


def test_metrics_match_the_lines_that_a_job_prints(make_rows: Callable[[int], list[Row]]) -> None:
    row = make_rows(3)[2] | {"loss": 1.25, "train_accuracy": 0.5, "test_accuracy": 0.0625, "images_per_second": 12345.6}
    line = format_row(row, 15)
    found = {name: re.search(regex, line) for name, regex in METRICS.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    expected = {"train_loss": 1.25, "train_accuracy": 50.0, "test_accuracy": 6.25}
    assert values == expected | {"epoch_seconds": float(f"{row['seconds']:.1f}")}


def test_metrics_match_no_other_line() -> None:
    summary = "  training loss      3.0155\n  test accuracy      16.20% (best 16.20%, epoch 1)"
    assert not any(re.search(regex, summary) for regex in METRICS.values())


def test_only_flags_that_were_given_become_hyperparameters() -> None:
    flags = ["--num-workers", "4", "--batch_size=64", "--no-compile", "--instance-count", "2", "--spot"]
    assert hyperparameters(config_of(*flags), flags) == {"num-workers": "4", "batch-size": "64", "compile": "false"}


def test_data_of_ones_own_is_a_channel_and_no_hyperparameter() -> None:
    flags = ["--data", "s3://bucket/images"]
    assert hyperparameters(config_of(*flags), flags) == {}
    assert hyperparameters(config_of("--data", "sample"), ["--data", "sample"]) == {"data": "sample"}


def test_cost_is_told() -> None:
    text = describe(config_of("--instance-count", "3", "--spot", "--max-run-seconds", "5400"))
    assert text == "3 x ml.g5.xlarge, at most 1.5 h on spot instances, waiting included at most 3 h"
    text = describe(config_of("--coordinator-instance-type", "ml.m5.large", "--keep-alive-seconds", "600"))
    assert text == "1 x ml.m5.large + 1 x ml.g5.xlarge, at most 4 h, then kept (and paid) for up to 600 s more"
    assert describe(config_of(*TUNE)).startswith("10 jobs, 2 at a time, each 1 x ml.g5.xlarge")


@pytest.mark.parametrize("flag", [["--keep-alive-seconds", "60"], ["--encrypt-traffic"], ["--volume-kms-key", "k"]])
def test_what_the_tuner_would_drop_is_refused(flag: list[str]) -> None:
    with pytest.raises(UsageError, match="--tune"):
        config_of(*TUNE, *flag)


@pytest.mark.parametrize("search", ["lr=1-2:3", "lr=0.2:0.1", "lr=:1", "lr=1:2:3", "lr=nan:1", "speed=1:2"])
def test_search_without_a_range_is_refused(search: str) -> None:
    with pytest.raises(UsageError, match=f"--tune {search}: expected a flag of main.py with LOW:HIGH or choices"):
        config_of("--image", "mine", "--tune", search)


def test_search_needs_an_image_of_ones_own() -> None:
    with pytest.raises(UsageError, match="expected --image with SageMaker's training toolkit next to it"):
        config_of("--tune", "lr=0.1:0.2")


def test_workers_are_not_checked_before_their_number_is_known() -> None:
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
        ("--data", "file:///data"),
        ("--data", "s3:///data"),
        ("--data", "s3://bucket"),
        ("--bucket", "s3://mine"),
        ("--bucket", "Mine_1"),
        ("--image", ""),
    ],
)
def test_what_aws_would_refuse_is_refused_before(flags: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"{flags[0]} .*expected "):
        config_of(*flags)


def test_ranges_keep_whole_numbers_whole_and_choose_the_scale() -> None:
    name, rate = parameter_range("lr=0.001:0.1")
    assert (name, type(rate).__name__, rate.scaling_type) == ("lr", "ContinuousParameter", "Logarithmic")
    name, size = parameter_range("batch_size=64:128")
    assert (name, type(size).__name__, size.scaling_type) == ("batch-size", "IntegerParameter", "Linear")
    _, choice = parameter_range("precision=fp32,bf16")
    assert choice.values == ["fp32", "bf16"]


def test_every_exit_code_is_in_the_entrys_table() -> None:
    text = (ROOT / "sagemaker_entry" / "launch.py").read_text()
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    codes = {value for name, value in vars(outcome).items() if name[0].isupper() and isinstance(value, int)}
    assert table == codes - {outcome.FAILURE_CHARACTERS}
    readme = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)}
    assert table <= readme


def test_help_answers_at_once_and_knows_the_flags_of_both() -> None:
    command = [sys.executable, str(ROOT / "sagemaker_entry" / "submit.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, result.stderr
    for flag in ("--epochs", "--batch-size", "--instance-type", "--spot", "--tune", "--dry-run"):
        assert flag in result.stdout


def test_weights_on_this_machine_are_refused_since_the_job_would_not_see_them() -> None:
    with pytest.raises(UsageError, match=r"--init-from runs/first: expected s3://BUCKET"):
        config_of("--init-from", "runs/first")
    assert config_of("--init-from", "s3://bucket/runs/first").init_from == "s3://bucket/runs/first"
