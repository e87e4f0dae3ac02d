"""A trained model for MLflow's pyfunc interface."""

from typing import Any

import numpy as np
from mlflow.pyfunc import PythonModel, PythonModelContext


class ServedModel(PythonModel):  # type: ignore[misc]
    """Predicts class probabilities, float32 (N, classes), for uint8 images (N, image_size, image_size, 3)."""

    def load_context(self, context: PythonModelContext) -> None:
        from vgg_ddp.weights.model_file import load_classifier

        self.classifier = load_classifier(context.artifacts["model"])

    # MLflow reads this annotation and does not understand numpy's generic types.
    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> np.ndarray:
        return self.classifier.probabilities(model_input).numpy()
