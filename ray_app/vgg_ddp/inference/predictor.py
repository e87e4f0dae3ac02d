"""The actors of Ray Data that classify images."""

import pickle
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from vgg_ddp.flags import UsageError
from vgg_ddp.inference.output import SCHEMA
from vgg_ddp.inference.reading import NO_ROW, REFUSED, Batch, Reader

if TYPE_CHECKING:
    from vgg_ddp.weights.model_file import Classifier


class Predictor:
    """Classifies batches of decoded images. Ray Data creates one per actor, which loads the model once.

    `device` is that of --device: auto and gpu use the actor's GPU; if torch cannot, auto falls back to the CPU.
    """

    def __init__(self, model: "ray.ObjectRef[bytes]", location: str, device: str, tta: bool) -> None:
        import torch

        from vgg_ddp.machine.gpus import can_use_gpus
        from vgg_ddp.machine.malloc import keep_freed_memory
        from vgg_ddp.weights.model_file import build_classifier

        keep_freed_memory()
        # There is an actor per core.
        torch.set_num_threads(1)
        self._tta = tta
        self._classifier: Classifier | UsageError
        try:
            use_gpu = device != "cpu" and can_use_gpus(device, 1, "Classifying")
            self._classifier = build_classifier(ray.get(model), location, "cuda" if use_gpu else "cpu")
        except UsageError as error:
            # The calls return it, because Ray Data would start an actor that fails here again and again.
            self._classifier = error

    def __call__(self, batch: Batch) -> pa.Table:
        if isinstance(self._classifier, UsageError):
            return pa.Table.from_pylist([{"row": REFUSED, "error": str(self._classifier)}], SCHEMA)
        return to_table(batch, self._classifier, self._tta)


class ReadingPredictor(Predictor):
    """Also reads and decodes the images, so that they do not pass from process to process."""

    def __init__(self, reader: Reader, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reader = reader

    def __call__(self, batch: Batch) -> Iterator[pa.Table]:
        for images in self._reader.read(pickle.loads(batch["item"][0])):
            yield super().__call__(images)


def to_table(batch: Batch, classifier: "Classifier", tta: bool) -> pa.Table:
    """Classify a batch: a row of `SCHEMA` for each image."""
    is_image = batch["error"] == ""
    probabilities = np.empty((0, len(classifier.class_names)), np.float32)
    if is_image.any():
        probabilities = classifier.probabilities(batch["image"][is_image], tta).numpy()
    best = np.zeros(len(is_image), np.int64)
    best[is_image] = probabilities.argmax(axis=1)
    highest = np.zeros(len(is_image), np.float32)
    highest[is_image] = probabilities.max(axis=1, initial=0)
    columns = [
        pa.array(batch["path"], pa.string()),
        pa.array(batch["row"], mask=batch["row"] == NO_ROW),
        pa.array(classifier.class_names).take(pa.array(best, mask=~is_image)),
        pa.array(highest, mask=~is_image),
        _lists(probabilities, is_image),
        pa.array(batch["error"], pa.string(), mask=is_image),
    ]
    return pa.table(columns, SCHEMA)


def _lists(values: npt.NDArray[np.float32], is_present: npt.NDArray[np.bool_]) -> pa.Array:
    """Rows of values as lists, with nulls between them."""
    offsets = np.concatenate([[0], np.cumsum(is_present * values.shape[1])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values.ravel(), mask=pa.array(~is_present))
