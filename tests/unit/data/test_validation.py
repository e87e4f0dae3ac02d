"""Which images are for validation, however they are read."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from support.parquet_tables import write_sample_in_row_groups
from vgg_ddp.data.dataset import channel_statistics, load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.data.streamed_dataset import RowRange, StreamedDataset, decode_rows, first_error, open_stream
from vgg_ddp.data.validation import split_off_validation
from vgg_ddp.flags import UsageError

Pixels = npt.NDArray[np.uint8]


def digests(images: Iterable[Pixels]) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def counts(labels: npt.NDArray[np.int64], fraction: float) -> list[int]:
    """Number of validation images of each class."""
    _, validation = split_off_validation(labels, fraction, 0)
    return np.bincount(labels[validation], minlength=int(labels.max()) + 1).tolist()  # type: ignore[no-any-return]


def test_both_parts_together_have_every_image_once_in_order() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 1000)
    for fraction in (0.001, 0.1, 0.5, 0.99):
        train, validation = split_off_validation(labels, fraction, 3)
        assert sorted([*train, *validation]) == list(range(1000))
        assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()


def test_every_class_gives_its_share() -> None:
    labels = np.repeat(np.arange(3), [500, 50, 200])
    assert counts(labels, 0.1) == [50, 5, 20]
    assert counts(labels, 0.9) == [450, 45, 180]


def test_total_is_right_where_classes_are_small() -> None:
    # 4 images in each of 100 classes: rounded by itself, no class would give one.
    found = counts(np.repeat(np.arange(100), 4), 0.1)
    assert sum(found) == 40 and set(found) == {0, 1}


def test_no_class_loses_its_last_training_image() -> None:
    # 1, 2, 3, and 100 images; one class has none.
    assert counts(np.repeat([0, 1, 3, 4], [1, 2, 3, 100]), 0.95) == [0, 1, 0, 2, 95]


def test_draw_depends_on_the_seed_alone() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    first, again, other = (split_off_validation(labels, 0.2, seed)[1].tolist() for seed in (5, 5, 6))
    assert first == again != other
    # A fifth of 100 images would be in both by chance.
    assert len({*first} & {*other}) < 40


@pytest.mark.parametrize(("sizes", "fraction"), [([50, 50], 0.004), ([1, 1, 1], 0.9)])
def test_split_without_any_image_is_refused(sizes: list[int], fraction: float) -> None:
    with pytest.raises(UsageError) as error:
        split_off_validation(np.repeat(np.arange(len(sizes)), sizes), fraction, 0)
    assert str(error.value).startswith(f"--validation-fraction {fraction}: no image of the {sum(sizes)} training")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 training images in two files with several row groups, and 30 test images."""
    return write_sample_in_row_groups(tmp_path_factory.mktemp("data"), (190, 40), (110, 25))


def decoded(dataset: StreamedDataset, split: str) -> dict[str, npt.NDArray[np.generic]]:
    """The blocks of all row groups of a split, as Ray Data's tasks decode them."""
    groups = {"train": dataset.train_groups, "validation": dataset.validation_groups, "test": dataset.test_groups}
    ranges = [RowRange(group, 0, group.rows) for group in groups[split]]
    blocks = [block for rows in ranges for block in decode_rows(dataset.folder, rows, dataset.image_size)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def test_streamed_splits_are_those_in_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of seven images.
    monkeypatch.setattr("vgg_ddp.data.streamed_dataset.BLOCK_BYTES", 7 * 32 * 32 * 3)
    source = find_source(str(data), "")
    whole, streamed = load_dataset(source, 32, 0.2, 4), open_stream(source, 32, 0.2, 4)
    counts = (240, 60, 30)
    assert (streamed.num_train, streamed.num_validation, streamed.num_test) == counts
    assert (whole.num_train, whole.num_validation, whole.num_test) == counts
    for name, split in (("train", whole.train), ("validation", whole.validation), ("test", whole.test)):
        assert split is not None
        blocks = decoded(streamed, name)
        assert np.array_equal(blocks["image"], split.images) and np.array_equal(blocks["label"], split.labels)
        assert blocks["index"].tolist() == list(range(len(split)))
    assert (streamed.mean, streamed.std) == (whole.mean, whole.std)


def test_validation_images_are_not_among_those_to_train_on(data: Path) -> None:
    source = find_source(str(data), "")
    whole, dataset = load_dataset(source, 32), load_dataset(source, 32, 0.2, 4)
    assert dataset.validation is not None
    train, validation = digests(dataset.train.images), digests(dataset.validation.images)
    assert not {*train} & {*validation}
    assert sorted(train + validation) == sorted(digests(whole.train.images))
    # Nor do they influence the normalization.
    assert (dataset.mean, dataset.std) == channel_statistics(dataset.train.images) != (whole.mean, whole.std)
    assert np.array_equal(dataset.test.images, whole.test.images)


def test_validation_images_are_not_decoded_for_training(
    data_folder: Path, make_parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    labels = np.arange(40) % 2
    kept, held_out = split_off_validation(labels, 0.25, 0)
    broken = [b"no image" if index in held_out else image for index, image in enumerate(images)]
    file = make_parquet(data_folder / "train.parquet", broken, labels)
    pq.write_table(pq.read_table(file), file, row_group_size=15)
    streamed = open_stream(find_source(str(data_folder), ""), 32, 0.25, 0)
    training = decoded(streamed, "train")
    assert not any(training["error"]) and digests(training["image"]) == digests(images[index] for index in kept)
    assert streamed.mean == channel_statistics(np.stack([images[index] for index in kept]))[0]
    # The message names the row in the file, with one image per block.
    monkeypatch.setattr("vgg_ddp.data.streamed_dataset.BLOCK_BYTES", 1)
    errors = decoded(streamed, "validation")["error"].tolist()
    expected = [f"the image in row {row} of train.parquet cannot be decoded (not PNG or JPEG)." for row in held_out]
    assert errors == expected == [first_error({"error": np.array([error])}) for error in errors]
