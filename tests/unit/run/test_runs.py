"""Which run a command uses, and which of its settings may change."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vgg_ddp.config import PROGRAM, TRAJECTORY_FIELDS, TrainConfig
from vgg_ddp.flags import UsageError, parse_flags, setting
from vgg_ddp.run.files import Row, write_config, write_metrics
from vgg_ddp.run.runs import Run, open_run, require_writable
from vgg_ddp.run.storage import Folder

MakeRows = Callable[[int], list[Row]]


@pytest.fixture
def open_with(tmp_path: Path) -> Callable[..., Run]:
    """Open the run that these flags name, in the storage folder of this test."""

    def open_it(*flags: object) -> Run:
        arguments = [*map(str, flags), "--storage-path", str(tmp_path / "runs")]
        return open_run(parse_flags(TrainConfig, arguments, PROGRAM), arguments)

    return open_it


@pytest.fixture
def started(run: Folder) -> TrainConfig:
    """Settings of an existing run that differ from the defaults."""
    config = TrainConfig(
        num_workers=2,
        epochs=3,
        batch_size=64,
        recipe="classic",
        lr=0.25,
        momentum=0.5,
        weight_decay=0.125,
        label_smoothing=0.25,
        augment_shift=1,
        cutout=5,
        seed=7,
        data="sample",
        image_size=64,
        storage_path="somewhere/else",
        run_name="run",
    )
    write_config(run, config.to_dict())
    return config


def test_new_run_has_the_given_name(open_with: Callable[..., Run], run: Folder) -> None:
    opened = open_with("--run-name", "run", "--epochs", 2)
    assert (opened.name, opened.folder, opened.exists) == ("run", run, False)
    assert opened.config.epochs == 2
    assert not opened.is_finished()


def test_opening_a_run_writes_nothing(open_with: Callable[..., Run], tmp_path: Path) -> None:
    open_with("--run-name", "run")
    assert list(tmp_path.iterdir()) == []


def test_unnamed_run_is_named_after_the_time(open_with: Callable[..., Run]) -> None:
    opened = open_with()
    assert opened.name.startswith("vgg11-20")
    # The name is valid for --resume and unique.
    TrainConfig(resume=opened.name)
    assert open_with().name != opened.name


def test_run_that_torchrun_may_restart_requires_a_name(
    open_with: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    # Left over in the shell.
    assert open_with().name
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match="torchrun's --max-restarts requires --run-name"):
        open_with()
    assert open_with("--run-name", "run").name == "run"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert open_with().name


def test_resume_of_an_unknown_run_is_refused(open_with: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--resume ghost: no run of that name in --storage-path {tmp_path}"):
        open_with("--resume", "ghost")


@pytest.mark.parametrize("name_flag", ["--resume", "--run-name"])
@pytest.mark.usefixtures("started")
def test_resume_keeps_the_settings_of_the_run(open_with: Callable[..., Run], tmp_path: Path, name_flag: str) -> None:
    opened = open_with(name_flag, "run")
    assert opened.exists
    assert (opened.config.epochs, opened.config.num_workers, opened.config.data) == (3, 2, "sample")
    assert (opened.config.lr, opened.config.seed, opened.config.image_size) == (0.25, 7, 64)
    # The storage path is the one where the run was found.
    assert opened.config.storage_path == str(tmp_path / "runs")


def test_run_that_was_compiled_resumes_without_compiling(
    open_with: Callable[..., Run], run: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(run, TrainConfig(epochs=3).to_dict() | {"compile": True})
    assert open_with("--resume", "run").config.epochs == 3
    assert "NOTE: run run was started with --compile, which this program no longer has" in capsys.readouterr().err


@pytest.mark.usefixtures("started")
def test_auto_data_keeps_the_choice_made_at_the_start(open_with: Callable[..., Run]) -> None:
    assert open_with("--resume", "run", "--data", "auto").config.data == "sample"


def test_run_can_be_resumed_from_another_folder(
    open_with: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = open_with("--run-name", "run", "--data", "my-images", "--data-dir", "cifar").config
    assert (config.data, config.data_dir) == (str(tmp_path / "my-images"), str(tmp_path / "cifar"))


CHANGES = {
    "data": "cifar10",
    "image_column": "photo",
    "label_column": "kind",
    "ingest": "stream",
    "init_from": "/other",
    "image_size": 32,
    "half_size_epochs": 1,
    "batch_size": 128,
    "recipe": "fast",
    "lr": 0.5,
    "momentum": 0.75,
    **dict.fromkeys(("weight_decay", "label_smoothing"), 0.0),
    **dict.fromkeys(("augment_shift", "cutout"), 0),
    "gradients": "bf16",
    "fast_convolutions": False,
    "seed": 0,
    "validation_fraction": 0.25,
    "keep_best": True,
}


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("name", TRAJECTORY_FIELDS)
def test_setting_that_determines_the_weights_cannot_change(open_with: Callable[..., Run], name: str) -> None:
    with pytest.raises(UsageError, match=f"^{setting(name, CHANGES[name])}: run run was started with (no )?--"):
        open_with("--resume", "run", *setting(name, CHANGES[name]).split())


def test_unchanged_settings_may_be_repeated(open_with: Callable[..., Run], started: TrainConfig) -> None:
    values = {name: getattr(started, name) for name in TRAJECTORY_FIELDS}
    same = [text for name, value in values.items() if value is not None for text in setting(name, value).split()]
    assert open_with("--resume", "run", *same).config.lr == 0.25


@pytest.mark.usefixtures("started")
def test_settings_that_do_not_determine_the_weights_may_change(open_with: Callable[..., Run]) -> None:
    opened = open_with("--resume", "run", "--epochs", 9, "--num-workers", 4, "--max-failures", 0, "--device", "cpu")
    assert (opened.config.epochs, opened.config.num_workers) == (9, 4)
    assert (opened.config.max_failures, opened.config.device) == (0, "cpu")


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(("workers", "near"), [(5, "4 or 8"), (63, "32 or 64"), (65, "64")])
def test_workers_that_do_not_divide_the_batch_of_a_run_are_rejected(
    open_with: Callable[..., Run], workers: int, near: str
) -> None:
    expected = (
        f"run run has a global batch of 64 images, which does not split evenly over {workers} workers: use {near}."
    )
    with pytest.raises(UsageError, match=f"--num-workers {workers}: {re.escape(expected)}"):
        open_with("--resume", "run", "--num-workers", workers)


@pytest.mark.usefixtures("started")
def test_elastic_run_may_split_its_batches_unevenly(open_with: Callable[..., Run]) -> None:
    assert open_with("--resume", "run", "--num-workers", 5, "--min-workers", 1).config.num_workers == 5


@pytest.mark.usefixtures("started")
def test_torchrun_processes_that_do_not_divide_the_batch_of_a_run_are_rejected(
    open_with: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match=r"--num-workers 3: .*: use 2 or 4\."):
        open_with("--resume", "run", "--num-workers", 0)


def test_resume_is_checked_against_the_settings_of_the_run(open_with: Callable[..., Run], run: Folder) -> None:
    # A batch of 96 splits evenly over 6 workers.
    write_config(run, TrainConfig(batch_size=96).to_dict())
    assert open_with("--resume", "run", "--num-workers", 6).config.num_workers == 6


@pytest.mark.usefixtures("started")
def test_run_is_finished_once_its_last_epoch_and_its_model_exist(
    open_with: Callable[..., Run], run: Folder, make_rows: MakeRows
) -> None:
    assert not open_with("--resume", "run").is_finished()
    write_metrics(run, make_rows(2))
    run.write("model.safetensors", b"")
    assert not open_with("--resume", "run").is_finished()
    write_metrics(run, make_rows(3))
    # The model is still the one after two epochs.
    assert not open_with("--resume", "run").is_finished()
    run.write("model.safetensors", b"")
    assert open_with("--resume", "run").is_finished()
    assert not open_with("--resume", "run", "--epochs", 4).is_finished()
    run.delete("model.safetensors")
    assert not open_with("--resume", "run").is_finished()


@pytest.mark.parametrize("content", [b"", b'{"epochs": 3', b"\xff\xfe"])
def test_damaged_config_is_reported(open_with: Callable[..., Run], run: Folder, content: bytes) -> None:
    run.write("config.json", content)
    with pytest.raises(UsageError, match="cannot be read"):
        open_with("--resume", "run")


def test_unknown_storage_scheme_is_reported() -> None:
    config = TrainConfig(storage_path="nosuch://bucket/runs")
    with pytest.raises(UsageError, match="--storage-path nosuch://bucket/runs cannot be read"):
        open_run(config, [])


def test_uri_that_needs_a_missing_package_is_reported() -> None:
    config = TrainConfig(storage_path="hf://datasets/someone/images")
    with pytest.raises(UsageError, match="--storage-path hf://datasets/someone/images cannot be read"):
        open_run(config, [])


@pytest.mark.usefixtures("started")
def test_resume_command_finds_the_run(open_with: Callable[..., Run], tmp_path: Path) -> None:
    command = open_with("--run-name", "run").resume_command()
    assert command == f"{PROGRAM} --resume run --storage-path {tmp_path / 'runs'}"
    resumed = parse_flags(TrainConfig, command.removeprefix(PROGRAM).split(), PROGRAM)
    assert open_run(resumed, command.removeprefix(PROGRAM).split()).exists


@pytest.mark.parametrize(("processes", "options"), [("2", "--nproc-per-node=2"), ("4", "...")])
def test_resume_command_uses_torchrun_under_torchrun(
    run: Folder, monkeypatch: pytest.MonkeyPatch, processes: str, options: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", processes)
    command = Run(TrainConfig(), "run", run, exists=True).resume_command()
    assert command == f"torchrun {options} ray_app/main.py --resume run"


def test_resume_command_omits_the_default_storage(run: Folder) -> None:
    assert Run(TrainConfig(), "run", run, exists=True).resume_command() == f"{PROGRAM} --resume run"


def test_writable_storage_is_created_and_left_empty(open_with: Callable[..., Run], tmp_path: Path) -> None:
    require_writable(open_with("--run-name", "run"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_storage_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    where = str(tmp_path / "file" / "runs")
    run = Run(TrainConfig(storage_path=where), "run", Folder.at(where) / "run", exists=False)
    with pytest.raises(UsageError, match=f"--storage-path {where} cannot be written"):
        require_writable(run)
