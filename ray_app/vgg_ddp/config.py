"""Every setting of a run: default, help text and checks. main.py turns each field into a flag."""

import dataclasses
from typing import ClassVar, Literal, Self

from vgg_ddp.flags import UsageError, flag, refuse_password
from vgg_ddp.recipes import Recipe, choose_recipe
from vgg_ddp.rules import RULES

SCRIPT = "ray_app/main.py"
PROGRAM = f"python {SCRIPT}"
DATA_NAMES = ("auto", "cifar10", "sample")

# Number of workers on CPUs, where nothing else determines it.
CPU_WORKERS = 4
# Minimum steps per epoch; the default batch shrinks to reach it.
MIN_STEPS_PER_EPOCH = 10
# Settings that default to the recipe's values.
RECIPE_FIELDS = ("lr", "momentum", "weight_decay", "label_smoothing", "augment_shift", "cutout")
# Settings that determine the trained weights: a resumed run must not change them.
TRAJECTORY_FIELDS = (
    "data",
    "image_column",
    "label_column",
    "ingest",
    "image_size",
    "half_size_epochs",
    "batch_size",
    "recipe",
    "init_from",
    *RECIPE_FIELDS,
    "gradients",
    "fast_convolutions",
    "seed",
    "validation_fraction",
    "keep_best",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train VGG11 on CIFAR-10 or your own images, with PyTorch DDP on Ray Train."""

    # Groups of flags in --help: the first field of each, and its heading.
    GROUPS: ClassVar = {
        "num_workers": "workers",
        "epochs": "training",
        "precision": "speed",
        "data": "data",
        "storage_path": "run",
        "mlflow": "monitoring",
    }

    num_workers: int | None = None
    """Number of DDP workers. 0: train in this process, without Ray (always the case under torchrun). Default: one per
    GPU, or 4 on CPUs."""
    min_workers: int | None = None
    """Start with as few as N workers, then grow and shrink with the cluster, up to --num-workers; the global batch
    stays the same. Default: --num-workers."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs if torch can use one for every worker, otherwise the CPU."""
    address: str | None = None
    """Ray cluster to join: HOST:PORT or auto. Default: $RAY_ADDRESS, otherwise a new cluster on this machine."""
    max_failures: int = 3
    """Maximum restarts from the newest checkpoint after worker failures."""
    spare_workers: bool = True
    """Keep a process ready for each worker, so that training continues sooner after a failure. Takes 0.4 GB of memory
    for each worker; skipped if memory is low."""
    collective_timeout_seconds: float = 600.0
    """How long workers wait for an unresponsive one before treating it as failed, in seconds."""

    epochs: int = 15
    """Passes over the training set."""
    batch_size: int | None = None
    """Global batch: images per optimizer step, summed over all workers. Default: 128 (classic) or 512 (fast), rounded
    down to a multiple of the number of workers; smaller if an epoch would have fewer than 10 steps."""
    recipe: Literal["fast", "classic"] = "fast"
    """fast: Muon, tuned for few epochs. classic: SGD with warm-up."""
    init_from: str | None = None
    """Start from the weights of an earlier run (its folder or .safetensors file) or from a state dict of the same
    architecture (.pth file, such as torchvision's vgg11_bn); a path or URI. If the classes differ, the last layer is
    reinitialized."""
    lr: float | None = None
    """Peak learning rate; decays linearly to 0. Default: 0.1 (fast, convolutions only), 0.05 (classic, after a warm-up
    over a fifth of the run)."""
    momentum: float | None = None
    """Nesterov momentum. Default: 0.6 (fast, convolutions only), 0.9 (classic)."""
    weight_decay: float | None = None
    """Weight decay of the linear layers and, with classic, the convolutions. Default: 0 (fast), 5e-4 (classic)."""
    label_smoothing: float | None = None
    """Label smoothing of the training loss. Default: 0.2 (fast), 0.1 (classic)."""
    augment_shift: int | None = None
    """Shift training images randomly by up to N pixels, and mirror them randomly. 0: do neither. Default: 2, or 4 with
    fast and 6 or more epochs (for 32-pixel images; scales with --image-size)."""
    cutout: int | None = None
    """Erase a random square of N x N pixels from each training image. Default: 0; with fast, 6 for 6 or more epochs, 8
    for 12 or more, 12 for 24 or more (for 32-pixel images; scales with --image-size)."""
    seed: int = 0
    """Random seed for the initial weights, the image order, the augmentation, and the validation split."""
    validation_fraction: float = 0.0
    """Fraction of the training images of each class to leave out of training, and to evaluate after each epoch. The
    test images are then evaluated only once, at the end. 0: none; the test images are evaluated after each epoch."""
    keep_best: bool = False
    """Keep the weights of the epoch with the best validation accuracy, instead of the last one. Requires
    --validation-fraction."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast if bf16 is clearly faster on this hardware, otherwise fp32. On GPUs that support it, fp32
    multiplies in TF32."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Precision of the gradient all-reduce. bf16 halves the traffic, for slow networks."""
    graphs: Literal["auto", "off"] = "auto"
    """auto: on GPUs of one machine with the images in their memory, take each step with CUDA graphs. off: launch each
    kernel from Python, as a model whose operations change from step to step requires."""
    fast_convolutions: bool = True
    """On a CPU, use Winograd convolutions where they are faster; results differ by rounding."""

    data: str = "auto"
    """Training data: cifar10, sample (bundled), or a folder or URI (s3://...) with Parquet files of images and labels,
    such as train-*.parquet and test-*.parquet. auto: cifar10 from --data-dir or the network, otherwise sample."""
    image_column: str | None = None
    """Column of the images in Parquet files. Default: image or img."""
    label_column: str | None = None
    """Column of the labels in Parquet files. Default: label, labels, or fine_label."""
    data_dir: str = "data"
    """Folder that holds CIFAR-10; it is downloaded there if missing."""
    ingest: Literal["auto", "memory", "stream"] = "auto"
    """memory: decode all images before training. stream: decode them during training, on the whole cluster. auto:
    memory if they fit."""
    image_size: int = 32
    """Resize images to N x N pixels."""
    half_size_epochs: int = 0
    """Train the first N epochs on half-size images, at about a quarter of the cost. Requires --image-size 64 or
    more."""

    storage_path: str = "runs"
    """Folder or URI (s3://...) for the run folders. Multiple machines must share it."""
    run_name: str | None = None
    """Name of the run folder; the name of an unfinished run resumes it. Default: date and time."""
    resume: str | None = None
    """Name of the run to resume. It keeps its settings; flags can change those that do not determine the weights."""
    checkpoint_every_seconds: float = 300.0
    """Maximum time between checkpoints, in seconds; the end of an epoch may add one."""

    mlflow: str | None = None
    """Record the run in MLflow: local (mlflow.db in the current folder), the URI of a server, or the ARN of a SageMaker
    MLflow server."""
    profile: bool = False
    """Profile a few early steps of rank 0; write a trace and a table of the most expensive operators."""
    verbose: bool = False
    """Also print the logs of Ray, torch, and the workers; Ray's log files always contain them."""

    def __post_init__(self) -> None:
        """Check every value that can be checked without inspecting the machine.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        recipe = self.chosen_recipe()
        for name, (is_valid, expected) in RULES.items():
            value = getattr(recipe if name in RECIPE_FIELDS else self, name)
            self._expect(name, value is None or is_valid(value), expected)
        for name in ("augment_shift", "cutout"):
            self._expect(name, getattr(recipe, name) < self.image_size, "less than --image-size")
        self._expect("resume", not (self.resume and self.run_name), "either --resume or --run-name, not both")
        for name in ("data", "storage_path", "init_from"):
            refuse_password(flag(name), getattr(self, name))
        # A resumed run may supply the other values of a combination; `open_run` checks it then.
        if self.resume is None and self.run_name is None:
            self.check_combinations()

    def check_combinations(self) -> None:
        """Check values against each other.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        if self.half_size_epochs:
            self._expect("half_size_epochs", self.image_size >= 64, "--image-size 64 or more")
            self._expect("half_size_epochs", self.half_size_epochs < self.epochs, "less than --epochs")
        if self.keep_best and not self.validation_fraction:
            raise UsageError("--keep-best requires validation images: add --validation-fraction 0.1, for example.")
        self.check_workers()

    def check_workers(self) -> None:
        """Check the settings that depend on the number of workers, as far as it is known.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        if self.min_workers is not None:
            most = self.min_workers if self.num_workers is None else self.num_workers
            self._expect("min_workers", 1 <= self.min_workers <= most, "1 to --num-workers")
            self._expect_enough_images(most)
        else:
            self.check_batch(self.num_workers or 1)

    def check_batch(self, num_workers: int) -> None:
        """Check that the global batch, if given, splits evenly across this number of workers.

        Raises:
            UsageError: if it does not.
        """
        if self.batch_size is not None:
            check_divisible(self.batch_size, num_workers)
        self._expect_enough_images(num_workers)

    def _expect_enough_images(self, num_workers: int) -> None:
        minimum = self.min_images_per_worker
        enough = self.batch_size is None or self.batch_size >= minimum * num_workers
        self._expect("batch_size", enough, f"at least {minimum * num_workers}, {minimum} per worker")

    def with_workers(self, num_workers: int) -> Self:
        """A copy with this number of workers, checked against the other settings.

        Raises:
            UsageError: if they conflict.
        """
        config = dataclasses.replace(self, num_workers=num_workers)
        config.check_workers()
        return config

    @property
    def workers_on_cpus(self) -> int:
        """The number of workers, given or default, if they train on CPUs."""
        return max(CPU_WORKERS, self.min_workers or 0) if self.num_workers is None else self.num_workers

    @property
    def min_images_per_worker(self) -> int:
        """Minimum number of images of a global batch per worker.

        Below 64 x 64 pixels, the last feature map of the fast recipe is 1 x 1: batch normalization then needs 2 images.
        """
        return 2 if self.recipe == "fast" and self.smallest_image_size < 64 else 1

    @property
    def smallest_image_size(self) -> int:
        """Height and width of the smallest images that the model gets, in pixels."""
        return self.image_size // 2 if self.half_size_epochs else self.image_size

    def _expect(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise UsageError(f"{flag(name)} {getattr(self, name)}: expected {expected}.")

    def chosen_recipe(self) -> Recipe:
        """The recipe, with the flags that were given in place of its values."""
        given = {name: getattr(self, name) for name in RECIPE_FIELDS if getattr(self, name) is not None}
        return dataclasses.replace(choose_recipe(self.recipe, self.epochs, self.image_size), **given)

    def with_recipe(self) -> Self:
        """A copy with the recipe's values filled in."""
        recipe = self.chosen_recipe()
        return dataclasses.replace(self, **{name: getattr(recipe, name) for name in RECIPE_FIELDS})

    def with_batch_size(self, num_train: int, num_workers: int) -> Self:
        """A copy with a global batch: the one given, or the default for this number of images and workers."""
        if self.batch_size is not None:
            return self
        images_per_worker = min(self.chosen_recipe().batch_size, num_train // MIN_STEPS_PER_EPOCH) // num_workers
        return dataclasses.replace(self, batch_size=max(self.min_images_per_worker, images_per_worker) * num_workers)

    @property
    def global_batch(self) -> int:
        """The global batch; `with_batch_size` must have set it."""
        assert self.batch_size is not None
        return self.batch_size

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Self:
        """Build a config from saved values; missing fields get their defaults.

        Raises:
            UsageError: if a value is no longer valid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})  # type: ignore[arg-type]


def check_divisible(batch_size: int, num_workers: int) -> None:
    """Raise UsageError unless a global batch splits evenly across the workers."""
    if batch_size % num_workers:
        lower = batch_size - batch_size % num_workers
        near = " or ".join(str(size) for size in (lower, lower + num_workers) if size)
        raise UsageError(
            f"--batch-size {batch_size} cannot be split evenly over {num_workers} workers: use --batch-size {near}."
        )
