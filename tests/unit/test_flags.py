"""The flags of the command, and what it says of wrong ones."""

import resource
import statistics
import subprocess
import sys

import pytest

from command import MAIN
from vgg_ddp.config import PROGRAM, TrainConfig
from vgg_ddp.flags import UsageError, flag, parse_flags, quit_with_usage_error

HELP_SECONDS = 1.0


def run_command(*arguments: str, python_options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python_options, str(MAIN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def parse(*arguments: str, default: TrainConfig | None = None) -> TrainConfig:
    return parse_flags(TrainConfig, arguments, PROGRAM, default)


def test_without_flags_the_defaults_hold() -> None:
    assert parse() == TrainConfig()


@pytest.mark.parametrize(
    "arguments", [("--batch-size", "64"), ("--batch_size", "64"), ("--batch-size=64",), ("--batch_size=64",)]
)
def test_hyphens_and_underscores_both_work(arguments: tuple[str, ...]) -> None:
    assert parse(*arguments) == TrainConfig(batch_size=64)


def test_values_take_the_types_of_their_fields() -> None:
    config = parse("--lr", "5e-2", "--compile", "--run-name", "7", "--address", "host:6379", "--device", "cpu")
    assert config == TrainConfig(lr=0.05, compile=True, run_name="7", address="host:6379", device="cpu")


def test_flags_not_given_take_the_saved_values() -> None:
    saved = TrainConfig(epochs=3, lr=0.7, compile=True, run_name="a")
    assert parse("--epochs", "9", "--no-compile", default=saved) == TrainConfig(epochs=9, lr=0.7, run_name="a")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--lr", "nan"), ("--lr nan", "expected a positive number")),
        (("--epochs", "0"), ("--epochs 0", "expected a positive number")),
        (("--batch_size", "0"), ("--batch-size 0", "expected a positive number")),
        (("--batch-size", "9", "--num-workers", "4"), ("--batch-size 9", "4 workers", "8 or 12")),
        (("--lr", "fast"), ("--lr", "fast", "float")),
        (("--epochs", "1.5"), ("--epochs", "1.5", "int")),
        (("--epochs",), ("--epochs", "Missing")),
        (("--device", "tpu"), ("--device", "tpu", "'auto', 'cpu', 'gpu'")),
        (("--epoch-count", "3"), ("--epoch-count", "--help")),
        (("stray",), ("stray", "--help")),
        (("--resume", "a", "--run-name", "b"), ("--resume a", "--run-name")),
    ],
)
def test_wrong_flag_is_told_in_one_line(arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        parse(*arguments)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_wrong_value_next_to_saved_ones_is_refused() -> None:
    with pytest.raises(UsageError, match="--momentum 2"):
        parse("--momentum", "2", default=TrainConfig(epochs=3))


def test_flag_of_a_field_has_hyphens() -> None:
    assert flag("checkpoint_every_seconds") == "--checkpoint-every-seconds"


def test_usage_error_ends_the_program_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as request:
        quit_with_usage_error(UsageError("--lr 0: no."))
    assert request.value.code == 2
    assert capsys.readouterr() == ("", "error: --lr 0: no.\n")


@pytest.mark.parametrize(
    ("arguments", "word"), [(("--no-such-flag", "1"), "--no-such-flag"), (("--lr", "0"), "--lr 0")]
)
def test_command_tells_a_wrong_flag_in_one_line_with_code_2(arguments: tuple[str, ...], word: str) -> None:
    ended = run_command(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert word in ended.stderr


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        # Processor time, which other programs on a busy machine lengthen least.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_command("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    taken = [seconds() for _ in range(3)]
    assert 0 < statistics.median(taken) < HELP_SECONDS, taken


def test_help_ends_quietly_where_nobody_reads_on() -> None:
    command = [sys.executable, str(MAIN), "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_help_names_every_field_and_imports_nothing_slow() -> None:
    ended = run_command("--help", python_options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "torchvision", "ray", "pyarrow", "numpy", "pandas", "matplotlib"}
    for name in TrainConfig.__dataclass_fields__:
        assert flag(name) in ended.stdout
