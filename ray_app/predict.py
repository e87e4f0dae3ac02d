"""Classes of images, or accuracy on a split: python ray_app/predict.py RUN_OR_MODEL image.png ...

Exit codes: 0 done; 2 the input cannot be used; 130 stopped by Ctrl-C.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error, refuse_password
from vgg_ddp.output import outlive_readers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vgg_ddp.inference import Classifier


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Classify images, or evaluate a split, with the model of a run."""

    model: Positional[str]
    """Folder of a finished run, or a .safetensors file; a path or a URI (s3://...)."""
    images: Positional[tuple[str, ...]] = ()
    """Images to classify, PNG or JPEG."""
    top: int = 3
    """Classes to print for each image, the likeliest first."""
    data: str | None = None
    """Evaluate on this data instead: as --data of main.py."""
    split: Literal["train", "test"] = "test"
    """Which split of --data."""
    data_dir: str = "data"
    """Folder where CIFAR-10 is looked for and downloaded to."""
    tta: bool = False
    """Test-time augmentation: classify six views of each image, and take the mean. With --data, next to the plain
    accuracy."""

    def __post_init__(self) -> None:
        """Check that there is something to do.

        Raises:
            UsageError: if not.
        """
        refuse_password("model", self.model)
        refuse_password("data", self.data)
        if bool(self.images) == bool(self.data):
            raise UsageError("expected either images to classify or --data to evaluate.")
        if self.top < 1:
            raise UsageError(f"--top {self.top}: expected a positive number.")


def classify(classifier: "Classifier", config: PredictConfig) -> None:
    """Print a line for each image: its likeliest classes with their probabilities."""
    import numpy as np

    from vgg_ddp.images import decode_image

    pixels = []
    for name in config.images:
        try:
            pixels.append(decode_image(Path(name).read_bytes(), classifier.image_size))
        except OSError as error:
            raise UsageError(f"{name} cannot be read as an image: {error}") from error
    width = max(map(len, config.images))
    for name, row in zip(config.images, classifier.probabilities(np.stack(pixels), config.tta), strict=True):
        best = row.topk(min(config.top, len(row)))
        classes = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        print(
            f"{name:<{width}}  " + "  ".join(f"{classifier.class_names[index]} {value:.1%}" for value, index in classes)
        )


def evaluate(classifier: "Classifier", config: PredictConfig) -> None:
    """Print the accuracy on a split."""
    from vgg_ddp.data import find_source, load_split

    assert config.data is not None
    split, names = load_split(find_source(config.data, config.data_dir), config.split, classifier.image_size)
    check_classes(classifier, split.labels, names, config)
    for tta in (False, True)[: 1 + config.tta]:
        predicted = classifier.probabilities(split.images, tta).argmax(dim=1).numpy()
        correct = int((predicted == split.labels).sum())
        kind = "accuracy with test-time augmentation" if tta else "accuracy"
        print(f"{kind} {correct / len(split):.2%} ({correct:,} of {len(split):,} {config.split} images)")


def check_classes(
    classifier: "Classifier", labels: "npt.NDArray[np.int64]", names: tuple[str, ...] | None, config: PredictConfig
) -> None:
    """Check that labels mean the same to the model and to the data.

    Raises:
        UsageError: if not.
    """
    from vgg_ddp.parquet import agree_on_classes

    known = classifier.class_names
    # Of a model whose own data named no classes, nothing but their number is known.
    are_named = known != tuple(map(str, range(len(known))))
    agree_on_classes({config.model: known if are_named else None, f"its {config.split} split": names}, str(config.data))
    bad = labels[(labels < 0) | (labels >= len(known))]
    if len(bad):
        raise UsageError(f"--data {config.data} has the label {bad[0]}: the model knows 0 to {len(known) - 1}.")


def main() -> int:
    try:
        config = parse_flags(PredictConfig, sys.argv[1:], "python ray_app/predict.py")
        from vgg_ddp.inference import load_classifier

        classifier = load_classifier(config.model)
        (evaluate if config.data else classify)(classifier, config)
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
