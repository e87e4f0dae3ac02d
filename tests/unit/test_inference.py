"""A model file becomes a classifier again, or is refused."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from vgg_ddp import inference
from vgg_ddp.flags import UsageError
from vgg_ddp.inference import load_classifier
from vgg_ddp.model import VGG11
from vgg_ddp.report import METADATA_KEY, write_model
from vgg_ddp.storage import Folder

Pixels = npt.NDArray[np.uint8]
DESCRIPTION = {"class_names": ["ant", "bee", "fly"], "image_size": 32, "mean": [0.0] * 3, "std": [1.0] * 3}


def message(location: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        load_classifier(str(location))
    text = str(error.value)
    assert str(location) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_folder_and_file_both_give_the_model(
    model_folder: Path, random_pixels: Pixels, expected_probabilities: npt.NDArray[np.float64], name: str
) -> None:
    classifier = load_classifier(str(model_folder / name))
    assert classifier.class_names == ("ant", "bee", "fly")
    assert classifier.image_size == 32
    np.testing.assert_allclose(classifier.probabilities(random_pixels), expected_probabilities, atol=1e-5)


def test_file_under_another_name_gives_the_model(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    file.write_bytes((model_folder / "model.safetensors").read_bytes())
    assert load_classifier(str(file)).class_names == ("ant", "bee", "fly")


def test_file_uri_gives_the_model(model_folder: Path) -> None:
    assert load_classifier(f"file://{model_folder}").class_names == ("ant", "bee", "fly")


def test_probabilities_do_not_depend_on_the_batches(
    model_folder: Path,
    random_pixels: Pixels,
    expected_probabilities: npt.NDArray[np.float64],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "BATCH", 4)
    probabilities = load_classifier(str(model_folder)).probabilities(random_pixels)
    np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-5)


def test_missing_folder_and_file_are_told(tmp_path: Path) -> None:
    assert "expected a folder of a finished run (with model.safetensors)" in message(tmp_path / "none")
    assert "expected a folder of a finished run" in message(tmp_path / "none.safetensors")


def test_folder_of_an_unfinished_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "finished run" in message(tmp_path)


def test_unknown_scheme_is_told() -> None:
    message("nosuch://bucket/runs/run")


@pytest.mark.parametrize("share", [0.0, 1e-7, 1e-5, 0.5, 1.0])
def test_truncated_file_is_told(model_folder: Path, tmp_path: Path, share: float) -> None:
    content = (model_folder / "model.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    file.write_bytes(content[: int(share * (len(content) - 1))])
    assert "is no model of this program, or is damaged" in message(file)


def test_file_that_is_no_safetensors_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"epoch,loss\n" * 100)
    assert "is no model of this program" in message(tmp_path)


def test_safetensors_of_something_else_is_told(tmp_path: Path) -> None:
    save_file({"embedding": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    assert "is no model of this program" in message(tmp_path / "a.safetensors")
    save_file({"embedding": torch.zeros(2, 2)}, tmp_path / "b.safetensors", {"format": "pt"})
    assert "is no model of this program" in message(tmp_path / "b.safetensors")


def test_safetensors_with_other_tensors_is_told(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"embedding": torch.zeros(2, 2)}, file, {METADATA_KEY: json.dumps(DESCRIPTION)})
    assert "is no model of this program" in message(file)


def test_model_of_another_number_of_classes_is_told(tmp_path: Path, trained: VGG11) -> None:
    preprocessing = {name: value for name, value in DESCRIPTION.items() if name != "class_names"}
    write_model(Folder.at(str(tmp_path)), trained.state_dict(), ("ant", "bee"), preprocessing)
    assert "is no model of this program" in message(tmp_path)


@pytest.mark.parametrize("name", sorted(DESCRIPTION))
def test_description_without_an_entry_is_told(tmp_path: Path, trained: VGG11, name: str) -> None:
    description = {key: value for key, value in DESCRIPTION.items() if key != name}
    tensors = {key: tensor.contiguous() for key, tensor in trained.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", {METADATA_KEY: json.dumps(description)})
    assert "is no model of this program" in message(tmp_path)
