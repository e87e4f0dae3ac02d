"""A trained model as MLflow loads it."""

from mlflow.pyfunc import PythonModel, PythonModelContext


class ServedModel(PythonModel):  # type: ignore[misc]
    """Probabilities of the classes, float32 (N, classes), for uint8 images (N, image_size, image_size, 3)."""

    def load_context(self, context: PythonModelContext) -> None:
        from vgg_ddp.inference import load_classifier

        self.classifier = load_classifier(context.artifacts["model"])

    # MLflow takes type hints for a description of its own, and the signature is stored with the model.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        return self.classifier.probabilities(model_input).numpy()
