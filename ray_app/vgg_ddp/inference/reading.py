"""Read and decode a chunk of images. Runs in Ray's processes; images that cannot be read get an error instead."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgg_ddp.data.columns import ColumnNames
from vgg_ddp.data.decode import decode_image
from vgg_ddp.data.parquet import PARALLEL_READS, encoded_images, open_file
from vgg_ddp.data.prepare.image_folder import printable
from vgg_ddp.flags import UsageError
from vgg_ddp.inference.image_set import Chunk, FileChunk, RowChunk, images_per_chunk
from vgg_ddp.run.notes import reason
from vgg_ddp.run.storage import Folder

# Instead of a row's number: the image is a file; the job must end, and the error says why. Not an exception, for which
# Ray Data prints pages of traceback.
NO_ROW, REFUSED = -1, -2
Batch = dict[str, npt.NDArray[np.generic]]
"""Images of a chunk: image, uint8 (n, image_size, image_size, 3); path, str (n,); row, int64 (n,), in a Parquet file,
`NO_ROW`, or `REFUSED`; error, str (n,): empty, or why the image is black."""
Encoded = bytes | Exception


@dataclass(frozen=True)
class Reader:
    """Reads chunks of images in this folder."""

    folder: Folder
    columns: ColumnNames
    image_size: int

    def read(self, chunk: Chunk) -> Iterator[Batch]:
        """Decode a chunk, in batches of at most `images_per_chunk`.

        Ends with a batch that is `REFUSED` if this machine cannot see the folder, or a Parquet file cannot be read.
        """
        try:
            self._require_folder()
            yield from self._read_files(chunk) if isinstance(chunk, FileChunk) else self._read_rows(chunk)
        except UsageError as error:
            image = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
            yield {
                "image": image,
                "path": np.array([""]),
                "row": np.array([REFUSED]),
                "error": np.array([str(error)]),
            }

    def _require_folder(self) -> None:
        if self.folder.is_local and not os.path.isdir(self.folder.path):
            raise UsageError(
                f"the folder {self.folder} of the images is not on {socket.gethostname()}: use a folder that all "
                "machines share, or a URI such as s3://bucket/images."
            )

    def _read_files(self, chunk: FileChunk) -> Iterator[Batch]:
        files = chunk.files
        rows = np.full(len(files), NO_ROW)
        yield self._decode(self._contents(files), [printable(file) for file in files], rows)

    def _contents(self, files: tuple[str, ...]) -> Iterator[Encoded]:
        if self.folder.is_local:
            yield from map(self._content, files)
            return
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            # A few at a time, because not all of them may fit in memory before they are decoded.
            for start in range(0, len(files), PARALLEL_READS):
                yield from pool.map(self._content, files[start : start + PARALLEL_READS])

    def _content(self, file: str) -> Encoded:
        try:
            if not self.folder.is_local:
                return self.folder.read(file)
            path = Path((self.folder / file).path)
            # Reading a pipe, for example, would never end.
            return path.read_bytes() if path.is_file() or not path.exists() else OSError("not a regular file")
        except FileNotFoundError:
            return OSError("it does not exist")
        except OSError as error:
            return error

    def _read_rows(self, chunk: RowChunk) -> Iterator[Batch]:
        with open_file(self.folder, chunk.file, self.columns, labeled=False) as parquet:
            first_row, row = parquet.first_rows[chunk.row_group], 0
            for rows in parquet.batches([chunk.row_group], images_per_chunk(self.image_size)):
                start, stop = max(row, chunk.start), min(row + len(rows), chunk.stop)
                if start < stop:
                    part = rows.slice(start - row, stop - row)
                    paths = [printable(chunk.file)] * len(part)
                    numbers = np.arange(first_row + start, first_row + stop)
                    yield self._decode(encoded_images(parquet, part), paths, numbers)
                row += len(rows)
                if row >= chunk.stop:
                    return

    def _decode(self, contents: Iterator[Encoded], paths: list[str], rows: npt.NDArray[np.int64]) -> Batch:
        images = np.zeros((len(paths), self.image_size, self.image_size, 3), np.uint8)
        errors = [""] * len(paths)
        for index, content in enumerate(contents):
            try:
                if isinstance(content, Exception):
                    raise content
                images[index] = decode_image(content, self.image_size, any_format=True)
            except (OSError, UsageError) as error:
                errors[index] = str(error) if isinstance(error, UsageError) else reason(error)
        return {"image": images, "path": np.array(paths), "row": rows, "error": np.array(errors)}
