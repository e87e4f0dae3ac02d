"""Choose the columns of images and labels in a Parquet file, and convert their values to plain Python and numpy."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vgg_ddp.flags import UsageError

# The first of these that a file has. Two names in one group would be ambiguous.
IMAGE_NAMES = (("image", "img"),)
LABEL_NAMES = (("label", "labels"), ("fine_label",))
# The label that the Hugging Face `datasets` library stores for an image whose label is withheld.
UNLABELED = -1


@dataclass(frozen=True)
class ColumnNames:
    """The names that --image-column and --label-column give; None: choose by name."""

    image: str | None = None
    label: str | None = None


BY_NAME = ColumnNames()


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes:
        constant_label: the label of all images if the file's folder names it, as in label=3; then there is no column.
    """

    image: str
    label: str
    constant_label: int | None = None

    def in_file(self) -> list[str]:
        """The columns to read."""
        return [self.image] if self.constant_label is not None else [self.image, self.label]


def choose_columns(schema: pa.Schema, wanted: ColumnNames, partitions: Mapping[str, str], file: str) -> Columns:
    """Choose the columns of a file by their names, and check their types.

    `partitions` are the columns whose values are in the file's path, not in the file.

    Raises:
        UsageError: naming the file, its columns, and what would fit.
    """
    image = choose_image_column(schema, wanted.image, file)
    label = _choose(schema, wanted.label, LABEL_NAMES, "label", partitions, file)
    if label not in schema.names:
        return Columns(image, label, _constant(label, partitions[label], file))
    kind = schema.field(label).type
    if not _may_hold_labels(kind):
        raise UsageError(f"column {label} of {file} has type {kind}: expected integers 0, 1, 2, and so on.")
    return Columns(image, label)


def choose_image_column(schema: pa.Schema, wanted: str | None, file: str) -> str:
    """Choose the image column of a file by its name, and check its type.

    Raises:
        UsageError: naming the file, its columns, and what would fit.
    """
    image = _choose(schema, wanted, IMAGE_NAMES, "image", {}, file)
    kind = schema.field(image).type
    if not _may_hold_images(kind):
        raise UsageError(
            f"column {image} of {file} has type {kind}: expected binary, or a struct with a field bytes (binary) or "
            "path (string)."
        )
    return image


def _choose(
    schema: pa.Schema,
    wanted: str | None,
    groups: tuple[tuple[str, ...], ...],
    kind: str,
    partitions: Mapping[str, str],
    file: str,
) -> str:
    names = [*schema.names, *(name for name in partitions if name not in schema.names)]
    flag = f"--{kind}-column"
    if wanted is not None:
        found = [wanted] if wanted in names else []
    else:
        found = next((present for group in groups if (present := [name for name in group if name in names])), [])
    if len(found) > 1:
        raise UsageError(f"{file} has columns {' and '.join(found)}: name the right one with {flag}.")
    if found and names.count(found[0]) > 1:
        raise UsageError(f"{file} has {names.count(found[0])} columns named {found[0]}: expected one.")
    if found:
        return found[0]
    described = ", ".join(f"{field.name} ({_type_name(field.type)})" for field in schema) or "no columns"
    fits = _may_hold_images if kind == "image" else _may_hold_labels
    fitting = [field.name for field in schema if fits(field.type)]
    *others, last = (name for group in groups for name in group)
    expected = f"{', '.join(others)} or {last}"
    hint = f"perhaps {flag} {fitting[0]}" if fitting else f"no column can be used as {flag}"
    missing = f"{flag} {wanted}: {file} has no such column" if wanted else f"{file} has no column named {expected}"
    raise UsageError(f"{missing}; it has {described}: {hint}.")


def _type_name(kind: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(kind) else "list" if pa.types.is_nested(kind) else str(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _may_hold_images(kind: pa.DataType) -> bool:
    kind = _plain_type(kind)
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    fields = {field.name: _plain_type(field.type) for field in kind if field.name in ("bytes", "path")}
    is_valid = {"bytes": _is_binary, "path": _is_string}
    # A field that is missing in all rows has the type null.
    return bool(fields) and all(pa.types.is_null(found) or is_valid[name](found) for name, found in fields.items())


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _may_hold_labels(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(_plain_type(kind)))


def _constant(name: str, value: str, file: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        raise UsageError(f"{file}: {name}={value} in its path is not a label: expected 0, 1, 2, and so on.")
    return int(value)


@dataclass(frozen=True)
class Cells:
    """The cells of an image column: encoded images, or the paths of image files."""

    encoded: list[bytes | None]
    paths: list[str | None]


def image_cells(column: pa.Array) -> Cells:
    """The cells of an image column."""
    column = _decoded(column)
    if not pa.types.is_struct(column.type):
        return Cells(column.to_pylist(), [None] * len(column))
    # Unlike `field`, this applies the offset and the validity of the struct.
    fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    encoded: list[bytes | None] = [None] * len(column)
    paths: list[str | None] = [None] * len(column)
    if "bytes" in fields:
        encoded = _decoded(fields["bytes"]).to_pylist()
    if "path" in fields and None in encoded:
        paths = _decoded(fields["path"]).to_pylist()
    return Cells(encoded, paths)


def label_values(column: pa.Array, file: str, first_row: int) -> npt.NDArray[np.int64]:
    """The labels of a column, int64 (N,); `first_row` is the column's first row in the file.

    Raises:
        UsageError: naming the row that has no label, or a label above the range of int64.
    """
    column = _decoded(column)
    if column.null_count:
        row = first_row + int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise UsageError(f"row {row} of {file} has no label: expected an integer.")
    values = column.to_numpy(zero_copy_only=False)
    if len(values) and values.max() > np.iinfo(np.int64).max:
        raise UsageError(
            f"row {first_row + int(values.argmax())} of {file} has label {values.max()}, which is too high."
        )
    return values.astype(np.int64)  # type: ignore[no-any-return]


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
