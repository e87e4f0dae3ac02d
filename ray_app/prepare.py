"""Convert a folder of images to Parquet files: python ray_app/prepare.py IMAGE_FOLDER OUTPUT

Exit codes: 0 done, even if some files were not images; 1 the output could not be written, or a process was killed; 2
invalid input; 130 stopped by Ctrl-C. Running the same command again continues an interrupted conversion.
"""

import csv
import dataclasses
import io
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vgg_ddp.flags import UsageError, flag, parse_flags, quit_with_usage_error, refuse_password
from vgg_ddp.machine.stdout import outlive_readers

if TYPE_CHECKING:
    from vgg_ddp.data.prepare.shards import Shard, Written
    from vgg_ddp.run.storage import Folder

BROKEN_FILE = "broken.csv"
BROKEN_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Convert a folder of images to Parquet files for --data of main.py."""

    POSITIONAL: ClassVar = ("image_folder", "output")

    image_folder: str
    """Folder with one subfolder per class, or with folders train and test (or val) that each have one per class."""
    output: str
    """Folder or URI (s3://...) to write the Parquet files to."""
    test_fraction: float = 0.1
    """Fraction of each class to hold out for testing, if IMAGE_FOLDER is not already split."""
    image_size: int | None = None
    """Resize images to N x N pixels and store them as PNG. Default: keep PNG and JPEG files, convert others to PNG."""
    images_per_shard: int = 10_000
    """Maximum number of images per Parquet file; a file also ends at 128 MB."""
    processes: int | None = None
    """Number of processes that read images. Default: one per core."""

    def __post_init__(self) -> None:
        """Check every value that can be checked without inspecting the machine.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        refuse_password("OUTPUT", self.output)
        if not 0 < self.test_fraction < 1:
            raise UsageError(f"--test-fraction {self.test_fraction}: expected a number between 0 and 1.")
        for name in ("image_size", "images_per_shard", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{flag(name)} {value}: expected a positive number.")


def check_output(folder: "Folder", shards: "list[Shard]") -> None:
    """Check that the output folder has no Parquet files of other images, which would become part of the data.

    Deletes partial files that a killed command left behind.

    Raises:
        UsageError: if there are such files, or the folder cannot be read.
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
            raise UsageError(f"{folder} contains {name}, made from other images: delete it or use an empty folder.")


def prepare(config: PrepareConfig) -> int:
    """Write all shards and print progress; return the exit code."""
    from vgg_ddp.data.prepare.image_folder import list_images
    from vgg_ddp.data.prepare.shards import Settings, plan_shards, write_shards
    from vgg_ddp.machine.limits import usable_cores
    from vgg_ddp.run.storage import Folder, absolute

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
            made = sum(shard.images for shard in written if not shard.was_skipped)
            note = "already written" if shard.was_skipped else f"{made / (time.monotonic() - started):,.0f} images/s"
            width = len(str(len(shards)))
            print(f"{len(written):>{width}}/{len(shards)}  {shard.name}  {shard.images:,} images  {note}", flush=True)
        report_broken(folder, written)
    except OSError as error:
        print(f"error: {folder} cannot be written: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a process was killed, possibly because memory ran out: use fewer --processes.", file=sys.stderr)
        return 1
    print(f"\nTrain on them: python ray_app/main.py --data {config.output}")
    return 0


def report_broken(folder: "Folder", written: "list[Written]") -> None:
    """Print the number of files that are not images, with examples, and write the full list to a file."""
    broken = sorted(pair for shard in written for pair in shard.broken)
    stored = f"\nStored {sum(shard.images for shard in written):,} images"
    if not broken:
        print(f"{stored}.")
        folder.delete(BROKEN_FILE)
        return
    print(f"{stored}; {len(broken):,} files are not images.")
    for path, reason in broken[:BROKEN_SHOWN]:
        print(f"  {path}: {reason}")
    if len(broken) > BROKEN_SHOWN:
        print("  ...")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *broken])
    folder.write(BROKEN_FILE, text.getvalue().encode())
    print(f"Full list: {folder / BROKEN_FILE}")


def main() -> int:
    try:
        return prepare(parse_flags(PrepareConfig, sys.argv[1:], "python ray_app/prepare.py"))
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
