"""Every setting is checked before anything starts."""

import dataclasses
from collections.abc import Callable

import pytest
from compare import CompareConfig
from predict import PredictConfig
from prepare import PrepareConfig

from vgg_ddp.config import TRAJECTORY_FIELDS, TrainConfig, check_divisible
from vgg_ddp.flags import UsageError

NAN, INFINITY = float("nan"), float("inf")
BELOW_ONE = "a number from 0 to 1, excluding 1"

INVALID = [
    ("epochs", 0, "a positive number"),
    ("epochs", -1, "a positive number"),
    ("batch_size", 0, "a positive number"),
    ("batch_size", -128, "a positive number"),
    ("num_workers", -1, "0 or more"),
    ("weight_decay", -1e-4, "0 or more"),
    ("weight_decay", NAN, "0 or more"),
    ("augment_shift", -1, "0 or more"),
    ("augment_shift", 32, "less than --image-size"),
    ("cutout", -1, "0 or more"),
    ("cutout", 32, "less than --image-size"),
    ("max_failures", -1, "0 or more"),
    ("seed", -1, "an integer from 0 to"),
    ("lr", 0.0, "a positive number"),
    ("lr", -0.1, "a positive number"),
    ("lr", NAN, "a positive number"),
    ("lr", INFINITY, "a positive number"),
    ("checkpoint_every_seconds", 0.0, "a positive number of seconds"),
    ("checkpoint_every_seconds", NAN, "a positive number of seconds"),
    ("momentum", 1.0, BELOW_ONE),
    ("momentum", -0.1, BELOW_ONE),
    ("momentum", NAN, BELOW_ONE),
    ("label_smoothing", 1.0, BELOW_ONE),
    ("label_smoothing", -0.1, BELOW_ONE),
    ("label_smoothing", NAN, BELOW_ONE),
    ("validation_fraction", 1.0, BELOW_ONE),
    ("validation_fraction", -0.1, BELOW_ONE),
    ("validation_fraction", NAN, BELOW_ONE),
    ("image_size", 31, "at least 32 pixels"),
    ("half_size_epochs", -1, "0 or more"),
    ("half_size_epochs", 1, "--image-size 64 or more"),
    ("run_name", "../up", "letters, digits"),
    ("run_name", "", "letters, digits"),
    ("run_name", ".hidden", "letters, digits"),
    ("run_name", "line\n", "letters, digits"),
    ("resume", "a/b", "letters, digits"),
    ("min_workers", 0, "1 to --num-workers"),
]


@pytest.mark.parametrize(("name", "value", "expected"), INVALID)
def test_invalid_value_is_refused_with_flag_and_expectation(name: str, value: object, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**{name: value})  # type: ignore[arg-type]
    message = str(error.value)
    assert message.startswith(f"--{name.replace('_', '-')} {value}: expected ")
    assert expected in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1),
        ("num_workers", 0),
        ("weight_decay", 0.0),
        ("augment_shift", 0),
        ("augment_shift", 31),
        ("cutout", 31),
        ("max_failures", 0),
        ("seed", 0),
        ("momentum", 0.0),
        ("label_smoothing", 0.0),
        ("image_size", 33),
        ("checkpoint_every_seconds", INFINITY),
        ("run_name", "2026-01-01_vgg.11"),
    ],
)
def test_boundary_value_is_accepted(name: str, value: object) -> None:
    config = TrainConfig(**{name: value})  # type: ignore[arg-type]
    assert getattr(config, name) == value


def test_best_epoch_can_be_kept_only_with_validation_images() -> None:
    assert TrainConfig(keep_best=True, validation_fraction=0.1).keep_best
    with pytest.raises(UsageError, match="--keep-best requires validation images: add --validation-fraction"):
        TrainConfig(keep_best=True)
    # The run to resume may have them.
    assert TrainConfig(keep_best=True, resume="run").keep_best


def test_run_name_and_resume_cannot_be_combined() -> None:
    with pytest.raises(UsageError, match="--resume a: expected either --resume or --run-name, not both"):
        TrainConfig(resume="a", run_name="b")


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "near"),
    [(128, 3, "126 or 129"), (10, 4, "8 or 12"), (2, 5, "5")],
)
def test_uneven_batch_is_refused_and_the_nearest_even_sizes_are_suggested(
    batch_size: int, num_workers: int, near: str
) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(batch_size=batch_size, num_workers=num_workers)
    assert str(error.value) == (
        f"--batch-size {batch_size} cannot be split evenly over {num_workers} workers: use --batch-size {near}."
    )


def test_elastic_run_starts_with_at_most_all_workers_if_their_number_is_known() -> None:
    assert TrainConfig(min_workers=5).with_workers(5).min_workers == 5
    for check in (
        lambda: TrainConfig(min_workers=5, num_workers=4),
        lambda: TrainConfig(min_workers=5).with_workers(4),
    ):
        with pytest.raises(UsageError, match="--min-workers 5: expected 1 to --num-workers"):
            check()


def test_batch_is_checked_once_the_number_of_workers_is_known() -> None:
    config = TrainConfig(batch_size=9)
    assert config.with_workers(3).num_workers == 3
    with pytest.raises(UsageError, match="--batch-size 9 cannot be split evenly over 4 workers: use --batch-size 8"):
        config.with_workers(4)


def test_cpus_get_four_workers_or_the_number_given_or_the_minimum() -> None:
    configs = (TrainConfig(), TrainConfig(num_workers=2), TrainConfig(min_workers=6), TrainConfig(min_workers=2))
    assert [config.workers_on_cpus for config in configs] == [4, 2, 6, 4]


def test_elastic_run_accepts_uneven_batches_with_enough_images_per_worker() -> None:
    assert TrainConfig(batch_size=15, num_workers=7, min_workers=2).min_workers == 2
    with pytest.raises(UsageError, match=r"--batch-size 13: expected at least 14, 2 per worker"):
        TrainConfig(batch_size=13, num_workers=7, min_workers=2)


def test_fast_recipe_needs_two_images_per_worker_if_its_last_feature_map_is_1x1() -> None:
    with pytest.raises(UsageError, match=r"--batch-size 4: expected at least 8, 2 per worker"):
        TrainConfig(batch_size=4, num_workers=4)
    with pytest.raises(UsageError, match=r"--batch-size 4: expected at least 8, 2 per worker"):
        TrainConfig(batch_size=4, num_workers=4, image_size=64, half_size_epochs=1)
    assert TrainConfig(batch_size=4, num_workers=4, image_size=64).batch_size == 4
    assert TrainConfig(batch_size=4, num_workers=4, recipe="classic").batch_size == 4
    assert TrainConfig(image_size=64).with_batch_size(20, 4).batch_size == 4
    assert TrainConfig().with_batch_size(20, 4).batch_size == 8


@pytest.mark.parametrize("name", ["data", "storage_path", "init_from"])
def test_password_in_a_uri_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: the URI contains a password or key") as error:
        TrainConfig(**{name: "s3://AKIA:hunter2@bucket/x"})  # type: ignore[arg-type]
    assert "hunter2" not in str(error.value)
    # A user name alone is not a secret.
    assert TrainConfig(**{name: "hdfs://me@host:9000/x"}).to_dict()[name] == "hdfs://me@host:9000/x"  # type: ignore[arg-type]


def test_password_in_a_positional_argument_is_refused_by_its_name() -> None:
    uri = "s3://AKIA:hunter2@bucket/x"
    arguments: dict[str, Callable[[], object]] = {
        "MODEL": lambda: PredictConfig(uri, data="sample"),
        "OUTPUT": lambda: PrepareConfig("photos", uri),
        "RUNS": lambda: CompareConfig(("first", uri)),
    }
    for name, make in arguments.items():
        with pytest.raises(UsageError, match=f"^{name}: the URI contains a password or key"):
            make()


def test_last_epoch_cannot_use_half_size_images() -> None:
    assert TrainConfig(image_size=64, epochs=4, half_size_epochs=3).half_size_epochs == 3
    with pytest.raises(UsageError, match="--half-size-epochs 4: expected less than --epochs"):
        TrainConfig(image_size=64, epochs=4, half_size_epochs=4)


def test_even_batch_is_accepted() -> None:
    check_divisible(12, 4)
    assert TrainConfig(batch_size=7, num_workers=0).batch_size == 7


def test_config_round_trips_through_a_dict() -> None:
    config = TrainConfig(epochs=3, run_name="a", lr=0.3, profile=True)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_saved_config_of_another_version_gets_defaults_for_missing_fields() -> None:
    assert TrainConfig.from_dict({"epochs": 3, "no_such_field": 1}) == TrainConfig(epochs=3)


def test_saved_config_is_validated() -> None:
    with pytest.raises(UsageError, match="--epochs 0"):
        TrainConfig.from_dict({"epochs": 0})


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 2  # type: ignore[misc]


def test_trajectory_fields_are_fields() -> None:
    assert set(TRAJECTORY_FIELDS) <= {field.name for field in dataclasses.fields(TrainConfig)}
