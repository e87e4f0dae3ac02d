"""Parquet files from a folder of images: python ray_app/prepare.py IMAGE_FOLDER OUTPUT

Exit codes: 0 done, even if single files were no images; 1 the output cannot be written; 2 the input cannot be used;
130 stopped by Ctrl-C. The same command goes on where an earlier one ended.
"""

import csv
import dataclasses
import io
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from vgg_ddp.flags import UsageError, flag, parse_flags, quit_with_usage_error, refuse_password
from vgg_ddp.output import outlive_readers

if TYPE_CHECKING:
    from vgg_ddp.shards import Shard, Written
    from vgg_ddp.storage import Folder

BROKEN_FILE = "broken.csv"
BROKEN_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Make Parquet files for --data from a folder of images."""

    image_folder: Positional[str]
    """Folder with a folder of images for each class, or with train and test (or val) that hold such folders."""
    output: Positional[str]
    """Folder or URI (s3://...) for the Parquet files."""
    test_fraction: float = 0.1
    """Part of each class that becomes the test split, where there are no folders for the splits."""
    image_size: int | None = None
    """Store images resized to this height and width, as PNG. Unset: PNG and JPEG files as they are, others as PNG."""
    images_per_shard: int = 10_000
    """Most images in one Parquet file; it also ends at 128 MB."""
    processes: int | None = None
    """Processes that read images. Unset: one for each core."""

    def __post_init__(self) -> None:
        """Check every value that can be checked without looking at the machine.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        refuse_password("output", self.output)
        if not 0 < self.test_fraction < 1:
            raise UsageError(f"--test-fraction {self.test_fraction}: expected a number between 0 and 1.")
        for name in ("image_size", "images_per_shard", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{flag(name)} {value}: expected a positive number.")


def check_output(folder: "Folder", shards: "list[Shard]") -> None:
    """Check that the output holds no other Parquet files, which would become part of the data.

    What a command that was killed left half written is deleted.

    Raises:
        UsageError: if it does, or cannot be read.
    """
    expected = {shard.name for shard in shards}
    try:
        names = folder.names()
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error}") from error
    for name in names:
        if name.endswith(".tmp") and name.rsplit(".", 2)[0] in expected:
            folder.delete(name)
        elif name not in expected and (fnmatch(name, "train*.parquet") or fnmatch(name, "test*.parquet")):
            raise UsageError(f"{folder} holds {name}, which is of other images: give an empty folder, or delete it.")


def prepare(config: PrepareConfig) -> int:
    """Write all shards and say how it goes; the exit code."""
    from vgg_ddp.image_folder import list_images
    from vgg_ddp.limits import usable_cores
    from vgg_ddp.shards import Settings, plan_shards, write_shards
    from vgg_ddp.storage import Folder, absolute

    try:
        images = list_images(Path(config.image_folder).absolute(), config.test_fraction)
    except OSError as error:
        raise UsageError(f"{config.image_folder} cannot be read: {error}") from error
    output = absolute(config.output)
    try:
        folder = Folder.at(output)
    except (OSError, ValueError) as error:
        raise UsageError(f"{config.output} cannot be used: {error}") from error
    per_shard = config.images_per_shard
    shards = [*plan_shards("train", images.train, per_shard), *plan_shards("test", images.test, per_shard)]
    check_output(folder, shards)
    counts = f"{len(images.train):,} training and {len(images.test):,} test files"
    print(f"Images:  {counts}, {len(images.class_names)} classes")
    print(f"Output:  {folder}, {len(shards)} files", flush=True)
    settings = Settings(images.root, images.class_names, config.image_size)
    written: list[Written] = []
    started = time.monotonic()
    try:
        for shard in write_shards(output, shards, settings, config.processes or usable_cores()):
            written.append(shard)
            made = sum(shard.images for shard in written if not shard.was_there)
            note = "was there" if shard.was_there else f"{made / (time.monotonic() - started):,.0f} images/s"
            width = len(str(len(shards)))
            print(f"{len(written):>{width}}/{len(shards)}  {shard.name}  {shard.images:,} images  {note}", flush=True)
        report_broken(folder, written)
    except OSError as error:
        print(f"error: {folder} cannot be written: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a process was killed, perhaps for want of memory: use fewer --processes.", file=sys.stderr)
        return 1
    print(f"\nTrain on them with: python ray_app/main.py --data {config.output}")
    return 0


def report_broken(folder: "Folder", written: "list[Written]") -> None:
    """Count the files that are no images, show some, and write all down."""
    broken = sorted(pair for shard in written for pair in shard.broken)
    print(f"\nStored {sum(shard.images for shard in written):,} images; {len(broken):,} files are no images.")
    if not broken:
        folder.delete(BROKEN_FILE)
        return
    for path, reason in broken[:BROKEN_SHOWN]:
        print(f"  {path}: {reason}")
    if len(broken) > BROKEN_SHOWN:
        print("  ...")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *broken])
    folder.write(BROKEN_FILE, text.getvalue().encode())
    print(f"All of them: {folder / BROKEN_FILE}")


def main() -> int:
    try:
        return prepare(parse_flags(PrepareConfig, sys.argv[1:], "python ray_app/prepare.py"))
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
