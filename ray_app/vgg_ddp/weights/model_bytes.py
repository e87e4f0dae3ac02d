"""Read model.safetensors as bytes, with its description. Without torch, which takes seconds to import."""

import json
import posixpath
from typing import Any

from vgg_ddp.flags import UsageError
from vgg_ddp.run.files import MODEL_FILE
from vgg_ddp.run.storage import Folder

METADATA_KEY = "vgg_ddp"
MAX_REASON = 300


def read_model(location: str) -> bytes:
    """Read the model of a run folder, or a .safetensors file, on disk or at a URI.

    Raises:
        UsageError: if there is none.
    """
    try:
        folder = Folder.at(location)
        if location.endswith(".safetensors"):
            return Folder(folder.filesystem, posixpath.dirname(folder.path)).read(posixpath.basename(folder.path))
        return folder.read(MODEL_FILE)
    except (OSError, ValueError) as error:
        # pyarrow's message for a missing file repeats the path and adds nothing.
        reason = "" if isinstance(error, FileNotFoundError) else f" ({error})"
        raise UsageError(
            f"{location}: expected a folder of a finished run (with {MODEL_FILE}), such as runs/NAME, or a "
            f".safetensors file{reason}."
        ) from error


def read_description(content: bytes, location: str) -> dict[str, Any]:
    """The description that `write_model` put into a safetensors file's metadata, JSON after an 8-byte length.

    See https://huggingface.co/docs/safetensors/index#format.

    Raises:
        UsageError: if there is none, or it lacks the class names or the size of the images.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        description: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])
        return description | {
            "class_names": tuple(description["class_names"]),
            "image_size": int(description["image_size"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise not_ours(location, error) from error


def not_ours(location: str, error: Exception) -> UsageError:
    """The error for a file that is no model of this program, or is damaged."""
    reason = " ".join(str(error).split())[:MAX_REASON]
    return UsageError(f"{location} cannot be loaded as a model of this program ({reason}).")
