"""Convert a folder of images to Parquet files: python ray_app/prepare.py IMAGE_FOLDER OUTPUT

Exit codes: 0 done, even if some files were not images; 1 the output could not be written, or a process was killed; 2
invalid input; 130 stopped by Ctrl-C. Running the same command again continues an interrupted conversion.
"""

import csv
import dataclasses
import io
import os
import re
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

# With PYTHONSAFEPATH, Python does not search the script's folder.
if sys.flags.safe_path:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from vgg_ddp.flags import UsageError, flag, parse_flags, quit_with_usage_error, refuse_password
from vgg_ddp.machine.environment import check_environment, run_script

if TYPE_CHECKING:
    from vgg_ddp.data.prepare.shards import Settings, Shard, Written
    from vgg_ddp.run.storage import Folder

BROKEN_FILE = "broken.csv"
BROKEN_SHOWN = 5
# Partial files that a killed command leaves behind.
PARTIAL_FILE = re.compile(r"(train|test)-\d{5}-of-\d{5}\.parquet\.[0-9a-f]{8}\.tmp")
# Number and size of the images that are checked for contrast.
CONTRAST_IMAGES, CONTRAST_SIZE = 100, 64


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


def check_output(folder: "Folder", shards: "list[Shard]") -> dict[str, dict[str, Any]]:
    """Check that the output folder has no Parquet files of other images, which would become part of the data.

    Deletes partial files that a killed command left behind. Returns the notes of the shards that exist.

    Raises:
        UsageError: if there are such files, or the folder cannot be read.
    """
    from vgg_ddp.data.layout import is_file_of
    from vgg_ddp.data.names import TEST_NAMES, TRAIN_NAMES
    from vgg_ddp.data.prepare.shards import read_note

    expected = {shard.name for shard in shards}
    try:
        names = folder.names()
        for name in filter(PARTIAL_FILE.fullmatch, names):
            folder.delete(name)
    except (OSError, ValueError) as error:
        # ValueError: a name that is not UTF-8.
        raise UsageError(f"{folder} cannot be used: {error}") from error
    others = [name for name in names if name not in expected]
    foreign = [name for name in others if any(is_file_of(name, split) for split in (*TRAIN_NAMES, *TEST_NAMES))]
    notes: dict[str, dict[str, Any]] = {}
    for name in expected.intersection(names):
        note = read_note(folder, name)
        if note is None:
            raise UsageError(
                f"{folder} contains {name}, which prepare.py did not write or which is damaged: delete it."
            )
        notes[name] = note
    if foreign:
        raise UsageError(
            f"{folder} contains {foreign[0]}, made from other images or with another --images-per-shard: delete "
            f"{'it' if len(foreign) == 1 else f'the {len(foreign)} files of this kind'} or use an empty folder."
        )
    return notes


def prepare(config: PrepareConfig) -> int:
    """Write all shards and print progress; return the exit code."""
    from vgg_ddp.data.prepare.image_folder import list_images
    from vgg_ddp.data.prepare.shards import Settings, delete_outdated, plan_shards
    from vgg_ddp.run.notes import noted
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
    if folder.is_local and Path(folder.path).resolve().is_relative_to(images.root.resolve()):
        raise UsageError(
            f"OUTPUT {config.output} is inside IMAGE_FOLDER, and would become a class: use another folder."
        )
    notes = check_output(folder, shards)
    counts = f"{len(images.train):,} training and {len(images.test):,} test files"
    print(f"Images:  {counts}, {len(images.class_names)} classes")
    for note in images.notes:
        print(f"NOTE: {note}")
    print(f"Output:  {folder}, {len(shards)} files", flush=True)
    settings = Settings(images.root, images.class_names, config.image_size)
    try:
        delete_outdated(folder, shards, settings, notes)
        written = write(output, shards, settings, config.processes)
        report_broken(folder, written)
        require_images(folder, written)
    except OSError as error:
        print(f"error: {folder} cannot be written: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a process was killed, possibly because memory ran out: use fewer --processes.", file=sys.stderr)
        return 1
    with noted("the contrast of the images could not be checked"):
        if problem := describe_contrast(folder, written):
            print(f"NOTE: {problem}")
    print(f"\nTrain on them: python ray_app/main.py --data {config.output}")
    return 0


def write(output: str, shards: "list[Shard]", settings: "Settings", processes: int | None) -> "list[Written]":
    """Write all shards, and print a line for each."""
    from vgg_ddp.data.prepare.shards import write_shards
    from vgg_ddp.machine.limits import usable_cores

    written: list[Written] = []
    started = time.monotonic()
    for shard in write_shards(output, shards, settings, processes or usable_cores()):
        written.append(shard)
        made = sum(shard.images for shard in written if not shard.was_skipped)
        note = "already written" if shard.was_skipped else f"{made / (time.monotonic() - started):,.0f} images/s"
        width = len(str(len(shards)))
        print(f"{len(written):>{width}}/{len(shards)}  {shard.name}  {shard.images:,} images  {note}", flush=True)
    return written


def require_images(folder: "Folder", written: "list[Written]") -> None:
    """Check that each split has an image, and delete the files of those that have none.

    Raises:
        UsageError: with the reason of the first file that could not be read.
    """
    empty: list[Written] = []
    for split in ("train", "test"):
        shards = [shard for shard in written if shard.name.startswith(split)]
        if not any(shard.images for shard in shards):
            empty += shards
    for shard in empty:
        folder.delete(shard.name)
    if empty:
        kinds = sorted({"training" if shard.name.startswith("train") else "test" for shard in empty}, reverse=True)
        broken = sorted(pair for shard in empty for pair in shard.broken)
        raise UsageError(
            f"none of the {len(broken):,} {' and '.join(kinds)} files is a readable image; the first is "
            f"{broken[0][0]}: {broken[0][1]}."
        )


def describe_contrast(folder: "Folder", written: "list[Written]") -> str | None:
    """What is wrong if the stored training images look alike, judged by some of them."""
    import pyarrow.parquet as pq

    from vgg_ddp.data.contrast import describe_missing_contrast
    from vgg_ddp.data.decode import decode_image

    shard = next(shard for shard in written if shard.images and shard.name.startswith("train"))
    with folder.filesystem.open_input_file((folder / shard.name).path) as file:
        rows = next(pq.ParquetFile(file).iter_batches(CONTRAST_IMAGES, columns=["image"])).to_pylist()
    return describe_missing_contrast([decode_image(row["image"]["bytes"], CONTRAST_SIZE) for row in rows])


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
        check_environment()
        return prepare(parse_flags(PrepareConfig, sys.argv[1:], "python ray_app/prepare.py"))
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    run_script(main)
