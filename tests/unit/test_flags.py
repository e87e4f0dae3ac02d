"""Command-line flags, --help, and errors about invalid flags."""

import dataclasses
import resource
import statistics
import subprocess
import sys
from typing import ClassVar

import pytest

from support.command import MAIN
from vgg_ddp.config import PROGRAM, TrainConfig
from vgg_ddp.flags import UsageError, arguments_of, flag, parse_flags, quit_with_usage_error

HELP_SECONDS = 0.5


def run_command(*arguments: str, python_options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python_options, str(MAIN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def parse(*arguments: str, default: TrainConfig | None = None) -> TrainConfig:
    return parse_flags(TrainConfig, arguments, PROGRAM, default)


def test_defaults_apply_without_flags() -> None:
    assert parse() == TrainConfig()


@pytest.mark.parametrize(
    "arguments", [("--batch-size", "64"), ("--batch_size", "64"), ("--batch-size=64",), ("--batch_size=64",)]
)
def test_hyphens_and_underscores_both_work(arguments: tuple[str, ...]) -> None:
    assert parse(*arguments) == TrainConfig(batch_size=64)


def test_values_have_the_types_of_their_fields() -> None:
    config = parse("--lr", "5e-2", "--profile", "--run-name", "7", "--address", "host:6379", "--device", "cpu")
    assert config == TrainConfig(lr=0.05, profile=True, run_name="7", address="host:6379", device="cpu")


def test_none_unsets_an_optional_value() -> None:
    assert parse("--batch-size", "None", default=TrainConfig(batch_size=64)) == TrainConfig()


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with positional arguments and a list."""

    POSITIONAL: ClassVar = ("source", "names")

    source: str
    """Required text."""
    names: tuple[str, ...] = ()
    """Any number of texts, 100 % optional."""
    tags: tuple[str, ...] = ()
    """Also any number."""
    wait: bool = True
    """On unless turned off."""


def parse_command(*arguments: str) -> Command:
    return parse_flags(Command, arguments, "command")


def test_positional_arguments_and_flags_may_be_mixed() -> None:
    assert parse_command("a") == Command("a")
    assert parse_command("a", "--no-wait", "b", "c", "--tags", "d", "e") == Command("a", ("b", "c"), ("d", "e"), False)
    assert parse_command("--tags", "d", "--wait", "a", "b") == Command("a", ("b",), ("d",))


def test_list_without_values_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--tags: expected at least one argument"):
        parse_command("a", "--tags", "--wait")


def test_missing_positional_argument_is_named() -> None:
    with pytest.raises(UsageError, match=r"required: SOURCE. See --help\.$"):
        parse_command("--wait")


def test_help_shows_positional_arguments_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as request:
        parse_command("--help")
    assert not request.value.code
    text = capsys.readouterr().out
    assert "usage: command SOURCE [NAMES ...] [flags]" in text
    assert "Any number of texts, 100 % optional.\n" in text
    assert "On unless turned off. (default: on)" in text


def test_flags_that_are_not_given_keep_the_saved_values() -> None:
    saved = TrainConfig(epochs=3, lr=0.7, profile=True, run_name="a")
    assert parse("--epochs", "9", "--no-profile", default=saved) == TrainConfig(epochs=9, lr=0.7, run_name="a")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--lr", "nan"), ("--lr nan", "expected a positive number")),
        (("--epochs", "0"), ("--epochs 0", "expected a positive number")),
        (("--batch_size", "0"), ("--batch-size 0", "expected a positive number")),
        (("--batch-size", "9", "--num-workers", "4"), ("--batch-size 9", "4 workers", "8 or 12")),
        (("--lr", "fast"), ("--lr fast", "expected a number")),
        (("--epochs", "1.5"), ("--epochs 1.5", "expected an integer")),
        (("--epochs",), ("--epochs", "expected one argument", "--help")),
        (("--device", "tpu"), ("--device tpu", "expected one of auto, cpu, gpu")),
        (("--epoch-count", "3"), ("unknown flag --epoch-count", "Did you mean --epochs?")),
        (("--zzz", "3"), ("unknown flag --zzz", "--help")),
        (("--profile=3",), ("--profile", "3")),
        (("--epoch", "3"), ("unknown flag --epoch",)),
        (("stray",), ("unexpected argument stray", "--help")),
        (("--resume", "a", "--run-name", "b"), ("--resume a", "--run-name")),
    ],
)
def test_invalid_flag_is_reported_in_one_line(arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        parse(*arguments)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_invalid_value_on_top_of_saved_ones_is_refused() -> None:
    with pytest.raises(UsageError, match="--momentum 2"):
        parse("--momentum", "2", default=TrainConfig(epochs=3))


def test_flags_are_spelled_with_hyphens() -> None:
    assert flag("checkpoint_every_seconds") == "--checkpoint-every-seconds"


def test_usage_error_exits_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as request:
        quit_with_usage_error(UsageError("--lr 0: invalid."))
    assert request.value.code == 2
    assert capsys.readouterr() == ("", "error: --lr 0: invalid.\n")


@pytest.mark.parametrize(
    ("arguments", "word"), [(("--no-such-flag", "1"), "--no-such-flag"), (("--lr", "0"), "--lr 0")]
)
def test_command_reports_an_invalid_flag_in_one_line_with_code_2(arguments: tuple[str, ...], word: str) -> None:
    ended = run_command(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert word in ended.stderr


def test_help_is_fast() -> None:
    def seconds() -> float:
        # CPU time, which other programs on a busy machine affect least.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_command("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    taken = [seconds() for _ in range(3)]
    assert 0 < statistics.median(taken) < HELP_SECONDS, taken


def test_help_exits_quietly_if_its_reader_is_gone() -> None:
    command = [sys.executable, str(MAIN), "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_help_shows_every_field_in_its_group_and_imports_nothing_slow() -> None:
    ended = run_command("--help", python_options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "torchvision", "ray", "pyarrow", "numpy", "pandas", "matplotlib"}
    groups = ended.stdout.split("\n\n")
    heading = "options"
    for field in dataclasses.fields(TrainConfig):
        heading = TrainConfig.GROUPS.get(field.name, heading)
        (group,) = [group for group in groups if group.startswith(f"{heading}:\n")]
        assert f"\n  {flag(field.name)}" in group


def test_arguments_give_a_config_its_values() -> None:
    assert arguments_of(TrainConfig()) == []
    config = TrainConfig(
        num_workers=2, data="/my images", lr=0.3, profile=True, fast_convolutions=False, recipe="classic"
    )
    arguments = arguments_of(config)
    assert "--no-fast-convolutions" in arguments
    assert parse_flags(TrainConfig, arguments, "program") == config
