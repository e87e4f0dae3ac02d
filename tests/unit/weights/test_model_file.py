"""A model file is loaded as a classifier, or rejected."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vgg_ddp.flags import UsageError
from vgg_ddp.model.vgg import VGG11
from vgg_ddp.run.storage import Folder
from vgg_ddp.weights import model_file as inference
from vgg_ddp.weights.model_file import METADATA_KEY, load_classifier, write_model

Pixels = npt.NDArray[np.uint8]
PREPROCESSING = {"image_size": 32, "mean": [0.0] * 3, "std": [1.0] * 3}
DESCRIPTION = {"architecture": "VGG11", "class_names": ["ant", "bee", "fly"], **PREPROCESSING}


def message(location: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        load_classifier(str(location))
    text = str(error.value)
    assert str(location) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_model_loads_from_folder_and_file(
    model_folder: Path, random_pixels: Pixels, expected_probabilities: npt.NDArray[np.float64], name: str
) -> None:
    classifier = load_classifier(str(model_folder / name))
    assert classifier.class_names == ("ant", "bee", "fly")
    assert classifier.image_size == 32
    np.testing.assert_allclose(classifier.probabilities(random_pixels), expected_probabilities, atol=1e-5)


def test_model_loads_from_a_renamed_file(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    file.write_bytes((model_folder / "model.safetensors").read_bytes())
    assert load_classifier(str(file)).class_names == ("ant", "bee", "fly")


def test_model_loads_from_a_file_uri(model_folder: Path) -> None:
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


def test_missing_folder_and_file_are_reported(tmp_path: Path) -> None:
    missing = message(tmp_path / "none")
    assert "expected a folder of a finished run (with model.safetensors), such as runs/NAME, or a" in missing
    assert missing.rstrip().endswith("file.")
    assert "expected a folder of a finished run" in message(tmp_path / "none.safetensors")


def test_folder_of_an_unfinished_run_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "finished run" in message(tmp_path)


def test_unknown_scheme_is_reported() -> None:
    message("nosuch://bucket/runs/run")


@pytest.mark.parametrize("share", [0.0, 1e-7, 1e-5, 0.5, 1.0])
def test_truncated_file_is_reported(model_folder: Path, tmp_path: Path, share: float) -> None:
    content = (model_folder / "model.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    file.write_bytes(content[: int(share * (len(content) - 1))])
    assert "cannot be loaded as a model of this program" in message(file)


def test_file_that_is_not_safetensors_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"epoch,loss\n" * 100)
    assert "cannot be loaded as a model" in message(tmp_path)


def test_safetensors_file_without_a_description_is_reported(tmp_path: Path) -> None:
    save_file({"embedding": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    assert "cannot be loaded as a model" in message(tmp_path / "a.safetensors")
    save_file({"embedding": torch.zeros(2, 2)}, tmp_path / "b.safetensors", {"format": "pt"})
    assert "cannot be loaded as a model" in message(tmp_path / "b.safetensors")


def test_safetensors_file_with_other_tensors_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"embedding": torch.zeros(2, 2)}, file, {METADATA_KEY: json.dumps(DESCRIPTION)})
    assert "cannot be loaded as a model" in message(file)


def test_model_of_another_number_of_classes_is_reported(tmp_path: Path, trained: VGG11) -> None:
    write_model(Folder.at(str(tmp_path)), trained, "classic", ("ant", "bee"), PREPROCESSING)
    reason = message(tmp_path)
    assert "cannot be loaded as a model" in reason and "size mismatch for classifier.weight" in reason


@pytest.mark.parametrize("name", sorted(DESCRIPTION))
def test_description_without_an_entry_is_reported(tmp_path: Path, trained: VGG11, name: str) -> None:
    description = {key: value for key, value in DESCRIPTION.items() if key != name}
    tensors = {key: tensor.contiguous() for key, tensor in trained.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", {METADATA_KEY: json.dumps(description)})
    assert "cannot be loaded as a model" in message(tmp_path)


def test_file_of_an_earlier_version_loads(tmp_path: Path, trained: VGG11) -> None:
    tensors = {key: tensor.contiguous() for key, tensor in trained.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", {METADATA_KEY: json.dumps(DESCRIPTION)})
    assert load_classifier(str(tmp_path)).class_names == ("ant", "bee", "fly")


def test_tied_weights_can_be_stored(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    write_model(Folder.at(str(tmp_path)), model, "classic", ("ant", "bee", "fly"), PREPROCESSING)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
