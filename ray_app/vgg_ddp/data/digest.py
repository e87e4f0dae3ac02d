"""A digest of a data set's files, which tells a folder that was moved from other images."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from vgg_ddp.data.layout import partitions
from vgg_ddp.data.parquet import PARALLEL_READS
from vgg_ddp.data.source import Source
from vgg_ddp.flags import UsageError
from vgg_ddp.run.storage import Folder

END_BYTES = 8
START_BYTES = 2**16
DIGITS = 16


def data_digest(source: Source) -> str:
    """A digest of the size, the start, and the footer of each file, in order; independent of where the files are.

    The footer has the sizes and statistics of all columns. Reading all images would take too long, so this does not
    notice every change of a few bytes, nor changes of image files of which the Parquet files have only the paths.

    Raises:
        UsageError: naming the file that cannot be read.
    """
    if source.layout is None:
        # torchvision verifies the checksums of these files.
        return "cifar10"
    folder, splits = source.layout.folder, filter(None, (source.layout.train, source.test_split))
    files = [(split.name, file) for split in splits for file in split.files]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        digests = list(pool.map(lambda file: _file_digest(folder, file), (file for _, file in files)))
    parts = [(split, partitions(file), digest) for (split, file), digest in zip(files, digests, strict=True)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:DIGITS]


def _file_digest(folder: Folder, name: str) -> str:
    """See https://parquet.apache.org/docs/file-format: a file ends with its footer, the footer's length, and PAR1."""
    try:
        with folder.filesystem.open_input_file((folder / name).path) as file:
            size = file.size()
            start = file.read(START_BYTES)
            file.seek(max(0, size - END_BYTES))
            end = file.read()
            # Anything but PAR1 is refused when the file is read.
            length = int.from_bytes(end[:4], "little") if end[4:] == b"PAR1" else 0
            file.seek(max(0, size - END_BYTES - length))
            return hashlib.sha256(b"%d\n" % size + start + file.read()).hexdigest()
    except OSError as error:
        raise UsageError(f"{folder / name} cannot be read as Parquet: {error}") from error
