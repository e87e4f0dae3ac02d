"""The syntax of search spaces, and random points in them."""

import math

import pytest

from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.search_space import Choice, Range, corners, draw_points, format_value, parse_space, read_value

SPACE = ("lr=0.01:0.1", "batch-size=64:96", "recipe=fast,classic", "fast_convolutions=true,false")


def test_values_have_the_types_of_their_settings() -> None:
    assert parse_space((*SPACE, "weight-decay=0:1", "cutout=0,8"), TrainConfig()) == (
        Range("lr", 0.01, 0.1),
        Range("batch_size", 64, 96),
        Choice("recipe", ("fast", "classic")),
        Choice("fast_convolutions", (True, False)),
        Range("weight_decay", 0.0, 1.0),
        Choice("cutout", (0, 8)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "lr: expected NAME=LOW:HIGH or NAME=A,B,C, as in "),
        ("=1,2", "=1,2: expected NAME=LOW:HIGH or NAME=A,B,C, as in "),
        ("lr=0.1", "lr=0.1: expected LOW:HIGH or several choices; for a single value, use --lr."),
        ("bach-size=64,128", "bach-size=64,128: unknown flag --bach-size. Did you mean batch-size?"),
        ("epochs=2,4", "epochs=2,4: --epochs cannot be tuned. These can: batch-size, recipe, "),
        ("address=a,b", "address=a,b: --address cannot be tuned."),
        ("lr=0.2:0.1", "lr=0.2:0.1: expected LOW:HIGH with LOW below HIGH."),
        ("lr=nan:1", "lr=nan:1: expected LOW:HIGH with LOW below HIGH."),
        ("lr=1:2:3", "lr=1:2:3: expected LOW:HIGH, as in "),
        ("lr=:1", "lr=:1: expected LOW:HIGH, as in "),
        ("lr=low:high", "lr=low:high: expected a number."),
        ("batch-size=1.5:3", "batch-size=1.5:3: expected an integer."),
        ("recipe=1:2", "recipe=1:2: --recipe is not a number; expected choices, as in NAME=A,B,C."),
        ("recipe=fast,slow", "recipe=fast,slow: expected one of fast, classic."),
        ("fast-convolutions=true,no", "fast-convolutions=true,no: expected true or false."),
        ("lr=0.1,,0.2", "lr=0.1,,0.2: expected different values with commas between them."),
        ("lr=0.1,0.10", "lr=0.1,0.10: expected different values with commas between them."),
        ("lr=None,0.1", "lr=None,0.1: None cannot be tuned; expected values."),
        ("seed=1,2", "seed=1,2: --seed cannot be tuned."),
        ("lr=0:0.1", "search space: --lr 0.0: expected a positive number."),
        ("batch-size=8,9", "search space: --batch-size 9 cannot be split evenly over 2 workers"),
        ("batch-size=1:64", "batch-size=1:64: most of these do not split evenly over 2 workers; give choices"),
        ("half-size-epochs=0,1", "search space: --half-size-epochs 1: expected --image-size 64 or more."),
    ],
)
def test_bad_space_names_the_argument_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_space((text,), TrainConfig(num_workers=2, epochs=4))
    assert str(caught.value).startswith(message)


def test_setting_is_tuned_only_once() -> None:
    with pytest.raises(UsageError, match="batch-size is given twice in the search space"):
        parse_space(("batch-size=8,16", "batch_size=32,64"), TrainConfig())


def test_setting_is_either_tuned_or_given() -> None:
    with pytest.raises(UsageError, match=r"^--lr 0.1: lr is also in the search space; remove one of them\.$"):
        parse_space(("lr=0.02:0.2",), TrainConfig(lr=0.1))


@pytest.mark.parametrize("values", ["s3://user:secret@bucket/a,runs/b", "s3://user:secret@bucket/a"])
def test_password_in_a_value_is_not_repeated(values: str) -> None:
    with pytest.raises(UsageError, match="the URI contains a password or key") as caught:
        parse_space((f"init-from={values}",), TrainConfig())
    assert "secret" not in str(caught.value)


def test_random_points_are_in_their_ranges_and_the_same_for_the_same_seed() -> None:
    space = parse_space(SPACE, TrainConfig())
    points = draw_points(space, 200, seed=1)
    assert len(points) == 200
    assert all(0.01 <= point["lr"] <= 0.1 and 64 <= point["batch_size"] <= 96 for point in points)
    assert {64, 96} < {point["batch_size"] for point in points}
    assert {point["recipe"] for point in points} == {"fast", "classic"}
    assert draw_points(space, 10, seed=1) == points[:10]
    assert draw_points(space, 10, seed=2) != points[:10]


def test_wide_range_is_searched_on_a_logarithmic_scale() -> None:
    for low, high, share_below_a_tenth in ((0.001, 1.0, 2 / 3), (0.5, 1.0, 0.0)):
        points = draw_points((Range("lr", low, high),), 500, seed=0)
        share = sum(point["lr"] < 0.1 for point in points) / len(points)
        assert math.isclose(share, share_below_a_tenth, abs_tol=0.08)


def test_space_with_few_points_gives_each_of_them_once() -> None:
    space = (Choice("recipe", ("fast", "classic")), Choice("cutout", (0, 8)))
    points = draw_points(space, 10, seed=0)
    assert len(points) == 4
    assert all(point in points for point in corners(space))


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.0325), ("recipe", "fast"), ("fast_convolutions", False), ("cutout", 8)]
)
def test_written_value_is_read_back(name: str, value: object) -> None:
    assert read_value(name, format_value(value)) == value
