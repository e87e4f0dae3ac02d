"""Small inputs shared by the fast tests."""

import io
import json
import math
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

from vgg_ddp.run.files import COLUMNS, VALIDATION_COLUMNS, Row
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights.model_file import write_model

if TYPE_CHECKING:
    from vgg_ddp.model.vgg import VGG11

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
    """Write a Parquet file of images (pixels, encoded bytes, or None) and labels, in the layout of `datasets`."""

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
    """Call a command's `main`, which must succeed; return its output."""

    def call(main: Callable[[], int], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        assert main() == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Call a command's `main`, which must exit with code 2 and a one-line error; return its output and that line."""

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
    """Rows of metrics for the first epochs of a run without a validation split; all numbers are different."""

    def rows(epochs: int) -> list[Row]:
        return [
            {name: epoch + 1.0 if name == "epoch" else epoch + index / 16 for index, name in enumerate(COLUMNS)}
            | dict.fromkeys(VALIDATION_COLUMNS, math.nan)
            for epoch in range(epochs)
        ]

    return rows


@pytest.fixture(scope="session")
def trained() -> "VGG11":
    """A model with three classes whose predictions clearly differ between images."""
    import torch

    from vgg_ddp.model.build import build_model
    from vgg_ddp.model.vgg import VGG11

    model = build_model("classic", 3, seed=1).eval()
    assert isinstance(model, VGG11)
    with torch.no_grad():
        model.classifier.weight.mul_(40)
    return model


@pytest.fixture(scope="session")
def model_folder(trained: "VGG11", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the model file of `trained`."""
    folder = tmp_path_factory.mktemp("model") / "run"
    preprocessing = {"image_size": 32, "mean": MEAN, "std": STD}
    write_model(Folder.at(str(folder)), trained, "classic", ("ant", "bee", "fly"), preprocessing)
    return folder


@pytest.fixture
def expected_probabilities(trained: "VGG11", random_pixels: Pixels) -> npt.NDArray[np.float64]:
    """The predictions of `trained` for `random_pixels`, preprocessed with numpy."""
    import torch

    scaled = (random_pixels.astype(np.float64) - MEAN) / STD
    with torch.no_grad():
        logits = trained(torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()).double().numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
