"""Classify images, or measure accuracy on a dataset: python ray_app/predict.py RUN_OR_MODEL image.png ...

Many images, through Ray Data: python ray_app/predict.py RUN_OR_MODEL --images FOLDER --output predictions.parquet

Exit codes: 0 done; 1 standard output cannot be written, or Ray failed; 2 invalid input; 129 stopped by SIGHUP; 130
stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error, refuse_password
from vgg_ddp.machine.environment import check_environment, run_script

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vgg_ddp.weights.model_file import Classifier


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Classify images, or measure accuracy on a dataset, with the model of a finished run."""

    POSITIONAL: ClassVar = ("model", "files")

    model: str
    """Run folder or .safetensors file; a path or URI (s3://...)."""
    files: tuple[str, ...] = ()
    """Images to classify (PNG, JPEG, or any other format that Pillow reads)."""
    top: int = 3
    """Number of classes to print per image, most likely first."""
    data: str | None = None
    """Measure accuracy on this data instead; takes the same values as --data of main.py."""
    split: Literal["train", "test"] = "test"
    """Split of --data to use."""
    image_column: str | None = None
    """Column of the images in the Parquet files of --data or --images. Default: image or img."""
    label_column: str | None = None
    """Column of the labels in the Parquet files of --data. Default: label, labels, or fine_label."""
    data_dir: str = "data"
    """Folder that holds CIFAR-10; it is downloaded there if missing."""
    tta: bool = False
    """Test-time augmentation: average the predictions for six views of each image."""
    images: str | None = None
    """Classify many images with Ray Data: a folder of images, searched recursively, or a Parquet file, or a folder of
    them; a path or URI. Requires --output."""
    output: str | None = None
    """Parquet file to write for --images, with one row per image; a path or URI."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device for --images. auto: GPUs if there are any, otherwise CPUs."""
    num_workers: int | None = None
    """Processes that classify --images. Default: one per GPU, or one per CPU core."""
    address: str | None = None
    """Classify --images on an existing Ray cluster (HOST:PORT or auto) instead of starting one."""

    def __post_init__(self) -> None:
        """Check the arguments.

        Raises:
            UsageError: if an argument is invalid.
        """
        refuse_password("MODEL", self.model)
        for name, location in (("--data", self.data), ("--images", self.images), ("--output", self.output)):
            refuse_password(name, location)
        given = [name for name in ("files", "data", "images") if getattr(self, name)]
        if not given:
            raise UsageError("no input: name image files, or use --data or --images.")
        if len(given) > 1:
            raise UsageError("use only one of image files, --data, and --images.")
        if "" in (self.image_column, self.label_column):
            raise UsageError("--image-column and --label-column: expected the name of a column.")
        if self.label_column and not self.data:
            raise UsageError("--label-column applies only to --data.")
        if self.image_column and self.files:
            raise UsageError("--image-column applies only to --data and --images.")
        if self.top < 1:
            raise UsageError(f"--top {self.top}: expected a positive number.")
        self._check_images()

    def _check_images(self) -> None:
        if self.images and not self.output:
            raise UsageError(f"--images {self.images} requires --output FILE.parquet.")
        if self.output and not self.images:
            raise UsageError(f"--output {self.output} applies only to --images.")
        if not self.images and (self.device != "auto" or self.num_workers or self.address):
            raise UsageError("--device, --num-workers, and --address apply only to --images.")
        if self.num_workers is not None and self.num_workers < 1:
            raise UsageError(f"--num-workers {self.num_workers}: expected a positive number.")


def classify(classifier: "Classifier", config: PredictConfig) -> None:
    """Print one line per image: the most likely classes with their probabilities."""
    import numpy as np

    from vgg_ddp.data.decode import decode_image

    pixels = []
    for name in config.files:
        try:
            pixels.append(decode_image(Path(name).read_bytes(), classifier.image_size, any_format=True))
        except IsADirectoryError as error:
            raise UsageError(f"{name} is a folder: use --images {name} --output FILE.parquet.") from error
        except FileNotFoundError as error:
            raise UsageError(f"{name} does not exist.") from error
        except OSError as error:
            raise UsageError(f"{name} cannot be read as an image: {error}") from error
    names, classes = (tuple(map(one_line, texts)) for texts in (config.files, classifier.class_names))
    width = max(map(len, names))
    for name, row in zip(names, classifier.probabilities(np.stack(pixels), config.tta), strict=True):
        best = row.topk(min(config.top, len(row)))
        shares = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        print(f"{name:<{width}}  " + "  ".join(f"{classes[index]} {value:.1%}" for value, index in shares))


def one_line(text: str) -> str:
    """Text with line breaks and other control characters escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def evaluate(classifier: "Classifier", config: PredictConfig) -> None:
    """Print the accuracy on a split."""
    from vgg_ddp.data.columns import ColumnNames
    from vgg_ddp.data.dataset import load_split
    from vgg_ddp.data.source import find_source

    assert config.data is not None
    columns = ColumnNames(config.image_column, config.label_column)
    source = find_source(config.data, config.data_dir, columns)
    split, names = load_split(source, config.split, classifier.image_size)
    split_name = source.test_name if config.split == "test" else config.split
    check_classes(classifier, split.labels, names, config)
    for tta in (False, True)[: 1 + config.tta]:
        predicted = classifier.probabilities(split.images, tta).argmax(dim=1).numpy()
        correct = int((predicted == split.labels).sum())
        kind = "accuracy with test-time augmentation" if tta else "accuracy"
        print(f"{kind} {correct / len(split):.2%} ({correct:,} of {len(split):,} {split_name} images)")


def check_classes(
    classifier: "Classifier", labels: "npt.NDArray[np.int64]", names: tuple[str, ...] | None, config: PredictConfig
) -> None:
    """Check that labels have the same meaning in the model and in the data.

    Raises:
        UsageError: if they do not.
    """
    from vgg_ddp.data.parquet import merge_class_names

    known = classifier.class_names
    # If the training data had no class names, they are just numbers.
    are_named = known != tuple(map(str, range(len(known))))
    merge_class_names(
        {config.model: known if are_named else None, f"its {config.split} split": names}, str(config.data)
    )
    bad = labels[(labels < 0) | (labels >= len(known))]
    if len(bad):
        raise UsageError(
            f"--data {config.data} contains label {bad[0]}, but the model has labels 0 to {len(known) - 1}."
        )


def classify_many(config: PredictConfig) -> int:
    """Classify --images with Ray Data, write --output, and return the exit code."""
    from vgg_ddp.inference.job import BatchJob, classify_images

    return classify_images(
        BatchJob(**{field.name: getattr(config, field.name) for field in dataclasses.fields(BatchJob)})
    )


def main() -> int:
    try:
        check_environment()
        config = parse_flags(PredictConfig, sys.argv[1:], "python ray_app/predict.py")
        if config.images:
            return classify_many(config)
        from vgg_ddp.weights.model_file import load_classifier

        classifier = load_classifier(config.model)
        (evaluate if config.data else classify)(classifier, config)
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    run_script(main, output_is_result=True)
