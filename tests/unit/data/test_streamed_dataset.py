"""Images decoded by row group equal the same images decoded all at once."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from support.parquet_tables import write_sample_in_row_groups
from vgg_ddp.data.dataset import channel_statistics, load_dataset
from vgg_ddp.data.source import find_source
from vgg_ddp.data.streamed_dataset import RowGroup, RowRange, decode_rows, first_error, open_stream, select_rows
from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder


@pytest.fixture(scope="module")
def many_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training images of the sample in two files with several row groups, one smaller, and 30 test images."""
    return write_sample_in_row_groups(tmp_path_factory.mktemp("groups"), (130, 40), (70, 30))


def test_streamed_dataset_matches_the_one_in_memory(many_groups: Path) -> None:
    source = find_source(str(many_groups), "")
    streamed, whole = open_stream(source, 32), load_dataset(source, 32)
    assert [group.rows for group in streamed.train_groups] == [40, 40, 40, 10, 30, 30, 10]
    assert (streamed.num_train, streamed.num_test) == (200, 30) == (whole.num_train, whole.num_test)
    assert (streamed.name, streamed.class_names) == (whole.name, whole.class_names)
    # With so few images, all are decoded to compute the statistics.
    assert (streamed.mean, streamed.std) == (whole.mean, whole.std)


def test_statistics_are_estimated_from_images_across_all_files(monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_source("sample", "")
    monkeypatch.setattr("vgg_ddp.data.streamed_dataset.EXAMPLES", 50)
    whole, streamed = load_dataset(source, 32), open_stream(source, 32)
    expected = np.concatenate([whole.train.images[start : start + 10] for start in range(0, 5000, 1000)])
    assert (streamed.mean, streamed.std) == channel_statistics(expected)
    assert streamed.mean == pytest.approx(whole.mean, abs=15)


@pytest.mark.parametrize("image_size", [32, 40])
def test_decoded_rows_have_the_images_and_labels_of_the_dataset_in_memory(
    many_groups: Path, image_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks of seven images.
    monkeypatch.setattr("vgg_ddp.data.streamed_dataset.BLOCK_BYTES", 7 * image_size**2 * 3)
    source = find_source(str(many_groups), "")
    streamed, whole = open_stream(source, image_size), load_dataset(source, image_size)
    for start, stop in ((0, 200), (35, 45), (117, 164), (199, 200)):
        ranges = select_rows(streamed.train_groups, start, stop)
        blocks = [block for rows in ranges for block in decode_rows(streamed.folder, rows, image_size)]
        assert max(len(block["label"]) for block in blocks) <= 7
        images, labels, indices = (
            np.concatenate([block[name] for block in blocks]) for name in ("image", "label", "index")
        )
        assert np.array_equal(indices, np.arange(start, stop))
        assert np.array_equal(images, whole.train.images[start:stop])
        assert np.array_equal(labels, whole.train.labels[start:stop])


def test_consecutive_ranges_of_shuffled_groups_cover_every_image_once(many_groups: Path) -> None:
    groups = open_stream(find_source(str(many_groups), ""), 32).train_groups[::-1]
    bounds = [0, 1, 66, 66, 133, 200]
    ranges = [rows for start, stop in itertools.pairwise(bounds) for rows in select_rows(groups, start, stop)]
    indices = [rows.group.first_image + row for rows in ranges for row in range(rows.start, rows.stop)]
    assert sorted(indices) == list(range(200))
    assert all(rows.start < rows.stop for rows in ranges)


def test_corrupt_image_is_reported_with_its_row_in_the_file(
    data_folder: Path, make_parquet: Callable[..., Path], random_pixels: npt.NDArray[np.uint8]
) -> None:
    file = data_folder / "train.parquet"
    make_parquet(file, [*random_pixels[:3], b"not an image", *random_pixels[3:]], [0, 1] * 3 + [0])
    pq.write_table(pq.read_table(file), file, row_group_size=2)
    # The driver finds it when it decodes examples, and Ray's tasks find it when they decode its rows.
    with pytest.raises(UsageError, match=r"the image in row 3 of train.parquet cannot be decoded"):
        open_stream(find_source(str(data_folder), ""), 32)
    group = RowGroup("train.parquet", index=1, first_image=102, rows=2)
    (block,) = decode_rows(Folder.at(str(data_folder)), RowRange(group, 0, 2), 32)
    assert "the image in row 3 of train.parquet cannot be decoded (not PNG or JPEG)" in (first_error(block) or "")
    assert block["index"].tolist() == [102, 103] and not block["image"].any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0, -1], r"label -1 in row group 1 of \S+train.parquet is out of range: expected 0 to 1"),
        ([0, 1, 0, 2], r"label 2 in row group 1 of \S+train.parquet is out of range: expected 0 to 1"),
        ([0, 1, 0, None], r"row 3 of train.parquet has no label"),
    ],
)
def test_invalid_label_is_reported_with_its_row_group(
    labels: list[int | None],
    message: str,
    data_folder: Path,
    make_parquet: Callable[..., Path],
    random_pixels: npt.NDArray[np.uint8],
) -> None:
    file = make_parquet(data_folder / "train.parquet", random_pixels[:4], labels, class_names=("ant", "bee"))
    pq.write_table(pq.read_table(file), file, row_group_size=2)
    with pytest.raises(UsageError, match=message):
        open_stream(find_source(str(data_folder), ""), 32)
