"""A trained model as MLflow loads it."""

from typing import Any

import numpy as np
from mlflow.pyfunc import PythonModel, PythonModelContext


class ServedModel(PythonModel):  # type: ignore[misc]
    """Probabilities of the classes, float32 (N, classes), for uint8 images (N, image_size, image_size, 3)."""

    def load_context(self, context: PythonModelContext) -> None:
        from vgg_ddp.inference import load_classifier

        self.classifier = load_classifier(context.artifacts["model"])

    # MLflow knows the plain class only, not numpy's more exact types.
    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> np.ndarray:
        return self.classifier.probabilities(model_input).numpy()
