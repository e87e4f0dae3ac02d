"""Every setting of a run: its default, its help text and its checks. `main.py` turns the fields into flags."""

import dataclasses
import re
from typing import Literal, Self

from vgg_ddp.flags import UsageError, flag, refuse_password
from vgg_ddp.recipe import Recipe, choose_recipe

SCRIPT = "ray_app/main.py"
PROGRAM = f"python {SCRIPT}"
DATA_NAMES = ("auto", "cifar10", "sample")

# The recipe's global batch becomes smaller where an epoch would have fewer steps than these.
STEPS_OF_AN_EPOCH = 10
# Settings that the recipe brings unless they are given.
RECIPE_FIELDS = ("lr", "momentum", "weight_decay", "label_smoothing", "augment_shift", "cutout")
# What decides the numbers that a run computes: a resumed run must not change them.
TRAJECTORY_FIELDS = (
    "data",
    "ingest",
    "image_size",
    "half_size_epochs",
    "batch_size",
    "recipe",
    "init_from",
    *RECIPE_FIELDS,
    "gradients",
    "seed",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train VGG11 on CIFAR-10, or on your own images, with PyTorch DDP under Ray Train."""

    num_workers: int = 4
    """DDP workers, one GPU each where there are enough. 0: no Ray cluster, this process trains. Under
    torchrun always 0: its processes are the workers."""
    min_workers: int | None = None
    """Fewest workers to train with: the run then starts with the GPUs or CPUs that are there, and shrinks and grows
    with the cluster, up to --num-workers. The global batch stays. Unset: always --num-workers."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where there is one for every worker, else the CPU."""
    address: str | None = None
    """Ray cluster to join: HOST:PORT or auto. Unset: $RAY_ADDRESS, else a cluster of its own on this machine."""

    epochs: int = 15
    """Passes over the training images."""
    batch_size: int | None = None
    """Images per optimizer step over all workers together (the global batch). Unset: 128 (classic) or 512
    (fast), or the next lower number that splits evenly; less where an epoch would have fewer than ten steps."""
    recipe: Literal["fast", "classic"] = "fast"
    """fast: Muon on the filters, and what else learns in few epochs. classic: SGD."""
    init_from: str | None = None
    """Begin with the weights of a former run (its folder or .safetensors file), or of torchvision's vgg11_bn (a .pth
    file); a path or URI. Where the classes differ, the last layer begins anew."""
    lr: float | None = None
    """Peak learning rate; it falls linearly to 0, with classic after a warm-up of a fifth of the run.
    Unset: 0.05 (classic), 0.1 (fast, of the filters)."""
    momentum: float | None = None
    """Nesterov momentum. Unset: 0.9 (classic), 0.6 (fast, of the filters)."""
    weight_decay: float | None = None
    """Weight decay of linear weights and, with classic, of convolutions. Unset: 5e-4 (classic), 0 (fast)."""
    label_smoothing: float | None = None
    """Label smoothing of the training loss. Unset: 0.1 (classic), 0.2 (fast)."""
    augment_shift: int | None = None
    """Random shift of training images in pixels; they are also mirrored at random. 0: neither. Unset: 2 of 32 pixels, 4
    with fast from 6 epochs on."""
    cutout: int | None = None
    """Side in pixels of a square that is cut out of each training image at random. 0: none. Unset: none, with fast 6 of
    32 pixels from 6 epochs on, 8 from 12 and 12 from 24 on."""
    seed: int = 0
    """Seed of the weights, of the order of images and of the augmentation."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the processor or GPU computes in it, else fp32."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Type in which the workers exchange gradients. bf16: half of the bytes, for slow links between machines."""
    compile: bool = False
    """Compile the model with torch.compile (pays off on GPUs)."""

    data: str = "auto"
    """auto: CIFAR-10 from --data-dir or the network, else the bundled sample. Or cifar10, sample, or a folder or
    URI (s3://...) with train*.parquet and test*.parquet (columns img or image, and label)."""
    data_dir: str = "data"
    """Folder where CIFAR-10 is looked for and downloaded to."""
    ingest: Literal["auto", "memory", "stream"] = "auto"
    """memory: decode all images first. stream: decode them while training goes on, with the cluster's CPUs.
    auto: memory if they fit."""
    image_size: int = 32
    """Images are resized to this many pixels in height and width."""
    half_size_epochs: int = 0
    """The first so many epochs see images of half the height and width, and take about a quarter of the time. Needs
    --image-size 64 or more."""

    storage_path: str = "runs"
    """Folder or URI (s3://...) that holds the run folders. Several machines need one that all of them share."""
    run_name: str | None = None
    """Name of the run folder. The name of an unfinished run resumes it. Unset: made from the time."""
    resume: str | None = None
    """Name of the run to go on with. Its settings are used again, with those given here instead."""
    checkpoint_every_seconds: float = 300.0
    """Longest time between two checkpoints; one is also saved at the ends of epochs."""
    mlflow: str | None = None
    """Record the run in MLflow: local (mlflow.db in this folder), the URI of a server, or the ARN of SageMaker's."""
    profile: bool = False
    """Profile some of the first steps of rank 0: a trace and the costliest operators, in the run folder."""
    verbose: bool = False
    """Show what Ray, torch and the workers log, too; it is always in Ray's log files."""
    max_failures: int = 3
    """Times that the run is restarted from its newest checkpoint after workers fail."""
    collective_timeout_seconds: float = 600.0
    """Time that the workers wait for one that does not answer; it counts as failed then."""

    def __post_init__(self) -> None:
        """Check every value that can be checked without looking at the machine.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        recipe = self.chosen_recipe()
        self._expect("epochs", self.epochs >= 1, "a positive number")
        self._expect("batch_size", self.batch_size is None or self.batch_size >= 1, "a positive number")
        for name in ("num_workers", "max_failures", "half_size_epochs"):
            self._expect(name, getattr(self, name) >= 0, "zero or a positive number")
        self._expect("seed", 0 <= self.seed < 2**63, "zero or a positive number below 2**63")
        self._expect("weight_decay", 0 <= recipe.weight_decay < float("inf"), "zero or a positive number")
        # Comparisons with nan are false, so these also refuse nan.
        self._expect("lr", 0 < recipe.lr < float("inf"), "a positive number")
        self._expect("checkpoint_every_seconds", self.checkpoint_every_seconds > 0, "a positive number of seconds")
        timeout = self.collective_timeout_seconds
        self._expect("collective_timeout_seconds", 1 <= timeout < float("inf"), "a second or more")
        self._expect("momentum", 0 <= recipe.momentum < 1, "a number from 0 up to, but not including, 1")
        self._expect("label_smoothing", 0 <= recipe.label_smoothing < 1, "a number from 0 up to, but not including, 1")
        for name in ("augment_shift", "cutout"):
            self._expect(name, getattr(recipe, name) >= 0, "zero or a positive number")
        self._expect("image_size", self.image_size >= 32, "at least 32 pixels, since VGG11 halves images five times")
        for name in ("augment_shift", "cutout"):
            self._expect(name, getattr(recipe, name) < self.image_size, "less than --image-size")
        for name in ("run_name", "resume"):
            value = getattr(self, name)
            valid = value is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value)
            self._expect(name, bool(valid), "letters, digits, '.', '_' and '-' only, since it names a folder")
        self._expect("resume", not (self.resume and self.run_name), "no --run-name next to it: both name the run")
        for name in ("data", "storage_path", "init_from"):
            refuse_password(name, getattr(self, name))
        # A run that is resumed may bring the other value of a pair: `open_run` checks again when it knows.
        if self.resume is None and self.run_name is None:
            self.check_pairs()

    def check_pairs(self) -> None:
        """Check the values that have to fit each other.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        if self.half_size_epochs:
            self._expect("half_size_epochs", self.image_size >= 64, "--image-size 64 or more with it")
            self._expect("half_size_epochs", self.half_size_epochs < self.epochs, "less than --epochs")
        self.check_workers()

    def check_workers(self) -> None:
        """Check what depends on the number of workers.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        if self.min_workers is not None:
            self._expect("min_workers", 1 <= self.min_workers <= self.num_workers, "1 up to --num-workers")
            self._expect_enough_images(self.num_workers)
        else:
            self.check_batch(max(1, self.num_workers))

    def check_batch(self, num_workers: int) -> None:
        """Check that a global batch, if one is given, can be split evenly over so many workers.

        Raises:
            UsageError: if not.
        """
        if self.batch_size is not None:
            check_divisible(self.batch_size, num_workers)
        self._expect_enough_images(num_workers)

    def _expect_enough_images(self, num_workers: int) -> None:
        least = self.least_images_of_worker
        enough = self.batch_size is None or self.batch_size >= least * num_workers
        self._expect("batch_size", enough, f"{least} images or more for each of {num_workers} worker(s)")

    @property
    def least_images_of_worker(self) -> int:
        """Images of a batch that each worker needs at least.

        The last batch normalisation of the fast recipe sees a single pixel of each image below 64 x 64, and needs two.
        """
        smallest = self.image_size // 2 if self.half_size_epochs else self.image_size
        return 2 if self.recipe == "fast" and smallest < 64 else 1

    def _expect(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise UsageError(f"{flag(name)} {getattr(self, name)}: expected {expected}.")

    def chosen_recipe(self) -> Recipe:
        """The recipe, with those of its settings that were given instead."""
        given = {name: getattr(self, name) for name in RECIPE_FIELDS if getattr(self, name) is not None}
        return dataclasses.replace(choose_recipe(self.recipe, self.epochs, self.image_size), **given)

    def with_recipe(self) -> Self:
        """The same settings, with the recipe's where none were given."""
        recipe = self.chosen_recipe()
        return dataclasses.replace(self, **{name: getattr(recipe, name) for name in RECIPE_FIELDS})

    def with_batch_size(self, num_train: int, num_workers: int) -> Self:
        """The same settings, with a global batch for so many images and workers where none was given."""
        if self.batch_size is not None:
            return self
        images_each = min(self.chosen_recipe().batch_size, num_train // STEPS_OF_AN_EPOCH) // num_workers
        return dataclasses.replace(self, batch_size=max(self.least_images_of_worker, images_each) * num_workers)

    @property
    def global_batch(self) -> int:
        """The batch size, once it is known."""
        assert self.batch_size is not None
        return self.batch_size

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Self:
        """Build a config from saved values; fields that it lacks take their defaults.

        Raises:
            UsageError: if a value is not valid any more.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})  # type: ignore[arg-type]


def check_divisible(batch_size: int, num_workers: int) -> None:
    """Raise UsageError unless every worker gets the same number of images of a global batch."""
    if batch_size % num_workers:
        lower = batch_size - batch_size % num_workers
        near = " or ".join(str(size) for size in (lower, lower + num_workers) if size)
        raise UsageError(
            f"--batch-size {batch_size} cannot be split evenly over {num_workers} workers: use --batch-size {near}."
        )
