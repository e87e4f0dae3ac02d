"""Write checkpoints with a digest, and verify them when they are read.

A checkpoint is a folder `checkpoint_<step>_<id>` in the run folder. `state.pt` contains the state; `manifest.json`,
written last, contains its size and SHA-256 digest. A folder without a manifest is incomplete.
"""

import contextlib
import hashlib
import io
import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import torch

from vgg_ddp.run.lease import LeaseLostError
from vgg_ddp.run.storage import KEEP, MANIFEST_FILE, STATE_FILE, Folder, is_checkpoint

logger = logging.getLogger(__name__)

State = dict[str, Any]


class DamagedCheckpointError(Exception):
    """A checkpoint is incomplete, or was changed after it was written."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"checkpoint {self.name} is damaged ({self.reason})"


def new_name(step: int) -> str:
    """A unique name for a checkpoint after `step` optimizer steps."""
    return f"checkpoint_{step:08d}_{uuid.uuid4().hex[:6]}"


def copy_to_host(state: State) -> State:
    """Copy all tensors to host memory, so that training can continue while they are written. A device-to-host sync."""
    return {name: _copy(value) for name, value in state.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def write(run: Folder, name: str, state: State) -> None:
    """Write a checkpoint, then delete all but the `KEEP` newest complete ones.

    Raises:
        OSError: if the storage cannot be written; older checkpoints are kept.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    digest = hashlib.sha256(content).hexdigest()
    manifest = {"step": state["step"], "size_bytes": len(content), "sha256": digest}
    try:
        run.require_lease()
        run.filesystem.create_dir((run / name).path)
        (run / name).write(STATE_FILE, content)
        (run / name).write(MANIFEST_FILE, json.dumps(manifest).encode())
    except OSError:
        with contextlib.suppress(OSError):
            _delete(run, name)
        raise
    _delete_old(run)


def _delete_old(run: Folder) -> None:
    # Incomplete ones do not count: a command that was killed or replaced may have left them, even with later steps.
    names = list_names(run)
    complete = [name for name in names if (run / name).exists(MANIFEST_FILE)]
    for name in names:
        if name not in complete[:KEEP]:
            _delete(run, name)


def _delete(run: Folder, name: str) -> None:
    # The manifest first, so that what a crash leaves is incomplete.
    (run / name).delete(MANIFEST_FILE)
    run.delete(name)


def list_names(run: Folder) -> list[str]:
    """Names of the run's checkpoints, newest first, including damaged ones."""
    return [name for name in reversed(run.names()) if is_checkpoint(name)]


def newest_complete(run: Folder) -> str | None:
    """Name of the newest checkpoint that has been written completely; its content is not verified."""
    return next((name for name in list_names(run) if (run / name).exists(MANIFEST_FILE)), None)


def read(run: Folder, name: str) -> State:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        DamagedCheckpointError: if it is incomplete or was changed.
        OSError: if the storage cannot be read.
    """
    try:
        manifest = json.loads((run / name).read(MANIFEST_FILE))
        content = (run / name).read(STATE_FILE)
    except (FileNotFoundError, ValueError) as error:
        raise DamagedCheckpointError(name, "incomplete") from error
    if len(content) != manifest.get("size_bytes"):
        raise DamagedCheckpointError(name, f"{len(content)} bytes instead of {manifest.get('size_bytes')}")
    if hashlib.sha256(content).hexdigest() != manifest.get("sha256"):
        raise DamagedCheckpointError(name, "its SHA-256 digest does not match")
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def read_newest(run: Folder) -> tuple[str, State] | None:
    """Name and state of the newest intact checkpoint; newer damaged ones are reported and deleted."""
    for name in list_names(run):
        try:
            return name, read(run, name)
        except DamagedCheckpointError as error:
            logger.warning("%s: using the previous one.", error)
            with _only_reported():
                _delete(run, name)
    return None


def peek_newest(run: Folder) -> dict[str, State]:
    """The state of the newest intact checkpoint, by its name; empty if there is none, or if it cannot be read now.

    Changes nothing, unlike `read_newest`, which another process may be calling.
    """
    try:
        for name in list_names(run):
            with contextlib.suppress(DamagedCheckpointError):
                return {name: read(run, name)}
    except OSError as error:
        logger.debug("The newest checkpoint cannot be read yet: %s", error)
    return {}


def delete_leftovers(run: Folder) -> None:
    """Delete what an earlier command had no time to delete, if possible.

    Raises:
        LeaseLostError: if another command has taken the run over.
    """
    with _only_reported():
        run.delete_temporary_files()
        _delete_old(run)


@contextlib.contextmanager
def _only_reported() -> Iterator[None]:
    """Report files that cannot be deleted: the run can continue with them."""
    try:
        yield
    except LeaseLostError:
        raise
    except OSError as error:
        logger.warning("A file that is no longer needed could not be deleted: %s", error)
