"""Images in row groups, against the same images decoded all at once."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from command import SAMPLE
from vgg_ddp.data import channel_statistics, find_source, load_dataset
from vgg_ddp.flags import UsageError
from vgg_ddp.storage import Folder
from vgg_ddp.stream import Piece, RowGroup, cut, decode_piece, first_error, open_stream


@pytest.fixture(scope="module")
def many_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training images of the sample in two files of several row groups, one of them smaller, and 30 test images."""
    folder = tmp_path_factory.mktemp("groups")
    train = pq.read_table(SAMPLE / "train.parquet")
    pq.write_table(train.slice(0, 130), folder / "train-0.parquet", row_group_size=40)
    pq.write_table(train.slice(130, 70), folder / "train-1.parquet", row_group_size=30)
    pq.write_table(pq.read_table(SAMPLE / "test.parquet").slice(0, 30), folder / "test.parquet")
    return folder


def test_streamed_dataset_is_described_as_the_one_in_memory(many_groups: Path) -> None:
    source = find_source(str(many_groups), "")
    streamed, whole = open_stream(source, 32), load_dataset(source, 32)
    assert [group.rows for group in streamed.train_groups] == [40, 40, 40, 10, 30, 30, 10]
    assert (streamed.num_train, streamed.num_test) == (200, 30) == (whole.num_train, whole.num_test)
    assert (streamed.name, streamed.class_names) == (whole.name, whole.class_names)
    # So few images are all decoded for it.
    assert (streamed.mean, streamed.std) == (whole.mean, whole.std)


def test_mean_and_deviation_come_from_all_over_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_source("sample", "")
    monkeypatch.setattr("vgg_ddp.stream.EXAMPLES", 50)
    whole, streamed = load_dataset(source, 32), open_stream(source, 32)
    expected = np.concatenate([whole.train.images[start : start + 10] for start in range(0, 5000, 1000)])
    assert (streamed.mean, streamed.std) == channel_statistics(expected)
    assert streamed.mean == pytest.approx(whole.mean, abs=15)


@pytest.mark.parametrize("image_size", [32, 40])
def test_pieces_hold_the_images_and_labels_of_their_rows(
    many_groups: Path, image_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks of seven images.
    monkeypatch.setattr("vgg_ddp.stream.BLOCK_BYTES", 7 * image_size**2 * 3)
    source = find_source(str(many_groups), "")
    streamed, whole = open_stream(source, image_size), load_dataset(source, image_size)
    for start, stop in ((0, 200), (35, 45), (117, 164), (199, 200)):
        pieces = cut(streamed.train_groups, start, stop)
        blocks = [block for piece in pieces for block in decode_piece(streamed.folder, piece, image_size)]
        assert max(len(block["label"]) for block in blocks) <= 7
        images, labels, numbers = (
            np.concatenate([block[name] for block in blocks]) for name in ("image", "label", "number")
        )
        assert np.array_equal(numbers, np.arange(start, stop))
        assert np.array_equal(images, whole.train.images[start:stop])
        assert np.array_equal(labels, whole.train.labels[start:stop])


def test_cuts_of_shuffled_groups_hold_each_image_once(many_groups: Path) -> None:
    groups = open_stream(find_source(str(many_groups), ""), 32).train_groups[::-1]
    bounds = [0, 1, 66, 66, 133, 200]
    pieces = [piece for start, stop in itertools.pairwise(bounds) for piece in cut(groups, start, stop)]
    numbers = [
        number for piece in pieces for number in range(piece.group.first + piece.start, piece.group.first + piece.stop)
    ]
    assert sorted(numbers) == list(range(200))
    assert all(piece.start < piece.stop for piece in pieces)


def test_broken_image_is_named_by_its_row_in_the_file(
    data_folder: Path, make_parquet: Callable[..., Path], random_pixels: npt.NDArray[np.uint8]
) -> None:
    file = data_folder / "train.parquet"
    make_parquet(file, [*random_pixels[:3], b"no image", *random_pixels[3:]], [0, 1] * 3 + [0])
    pq.write_table(pq.read_table(file), file, row_group_size=2)
    # The driver meets it among the examples; the tasks of Ray meet it in its piece.
    with pytest.raises(UsageError, match=r"row 3 of train.parquet holds a broken image"):
        open_stream(find_source(str(data_folder), ""), 32)
    group = RowGroup("train.parquet", index=1, first=102, first_in_file=2, rows=2)
    (block,) = decode_piece(Folder.at(str(data_folder)), Piece(group, 0, 2), 32)
    assert "row 3 of train.parquet holds a broken image (not PNG or JPEG)" in (first_error(block) or "")
    assert block["number"].tolist() == [102, 103] and not block["image"].any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0, -1], r"label -1 in row group 1 of \S+train.parquet is out of range: expected 0 to 1"),
        ([0, 1, 0, 2], r"label 2 in row group 1 of \S+train.parquet is out of range: expected 0 to 1"),
        ([0, 1, 0, None], r"row 3 of train.parquet has no label"),
    ],
)
def test_wrong_label_is_named_by_its_row_group(
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
