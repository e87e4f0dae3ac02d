"""Small inputs that several of the fast tests share."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vgg_ddp.report import COLUMNS, Row, write_model
from vgg_ddp.storage import Folder

if TYPE_CHECKING:
    from vgg_ddp.model import VGG11

Pixels = npt.NDArray[np.uint8]
MEAN, STD = (120.0, 115.0, 110.0), (60.0, 55.0, 50.0)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encode pixels with Pillow."""

    def encode_pixels(pixels: Pixels, kind: str = "PNG") -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        return stream.getvalue()

    return encode_pixels


@pytest.fixture
def random_pixels() -> Pixels:
    """Six images of 32 x 32 pixels."""
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def make_parquet(encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Write a Parquet file of images (pixels, encoded bytes or None) and labels, as the `datasets` library would."""

    def write(
        file: Path,
        images: Sequence[Pixels | bytes | None],
        labels: Sequence[int | None],
        column: str = "img",
        struct: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> Path:
        encoded = [encode(image) if isinstance(image, np.ndarray) else image for image in images]
        if struct:
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            image_column = pa.array([{"bytes": content, "path": None} for content in encoded], kind)
        else:
            image_column = pa.array(encoded, pa.binary())
        table = pa.table({column: image_column, "label": pa.array(labels, pa.int64())})
        if class_names is not None:
            features = {"label": {"names": list(class_names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
        return file

    return write


@pytest.fixture
def data_folder(tmp_path: Path, make_parquet: Callable[..., Path], random_pixels: Pixels) -> Path:
    """A folder with four training and two test images of two classes."""
    folder = tmp_path / "images"
    make_parquet(folder / "train.parquet", random_pixels[:4], [0, 1, 0, 1])
    make_parquet(folder / "test.parquet", random_pixels[4:], [1, 0])
    return folder


@pytest.fixture
def printed_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command's `main` in this process, which must succeed, and give what it printed."""

    def call(main: Callable[[], int], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        assert main() == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run a command's `main`, which must end with code 2 and one line of error; what it printed, and that line."""

    def call(main: Callable[[], int], *arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as request:
            main()
        printed = capsys.readouterr()
        assert request.value.code == 2
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.out, printed.err

    return call


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A run folder that does not exist yet."""
    return Folder.at(str(tmp_path / "runs" / "run"))


@pytest.fixture
def make_rows() -> Callable[[int], list[Row]]:
    """Rows of metrics for the first epochs of a run: every number differs."""

    def rows(epochs: int) -> list[Row]:
        return [
            {name: epoch + 1.0 if name == "epoch" else epoch + index / 16 for index, name in enumerate(COLUMNS)}
            for epoch in range(epochs)
        ]

    return rows


@pytest.fixture(scope="session")
def trained() -> "VGG11":
    """A model of three classes whose predictions differ clearly from image to image."""
    import torch

    from vgg_ddp.model import build_model

    model = build_model(3, seed=1).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(40)
    return model


@pytest.fixture(scope="session")
def model_folder(trained: "VGG11", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the model file of `trained`."""
    folder = tmp_path_factory.mktemp("model") / "run"
    preprocessing = {"image_size": 32, "mean": MEAN, "std": STD}
    write_model(Folder.at(str(folder)), trained.state_dict(), ("ant", "bee", "fly"), preprocessing)
    return folder


@pytest.fixture
def expected_probabilities(trained: "VGG11", random_pixels: Pixels) -> npt.NDArray[np.float64]:
    """What `trained` says of `random_pixels`, preprocessed with numpy."""
    import torch

    scaled = (random_pixels.astype(np.float64) - MEAN) / STD
    with torch.no_grad():
        logits = trained(torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()).double().numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
