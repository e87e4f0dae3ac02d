"""Checkpoints of a running job: copied at once, written by a thread while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from vgg_ddp import checkpoint
from vgg_ddp.storage import Folder


class Saver:
    """Writes this run's checkpoints: through ray.train.report under Ray Train, by itself in Ray's local mode.

    Local mode keeps nothing of what is reported to it.
    """

    def __init__(self, run: Folder, is_local: bool, rank: int) -> None:
        self._run = run
        self._rank = rank
        self._writer = ThreadPoolExecutor(1) if is_local else None
        self._pending: Future[None] | None = None

    def save(self, state: checkpoint.State, metrics: dict[str, Any]) -> None:
        """Start to write a checkpoint. Under Ray Train a collective (every rank must call it).

        Raises:
            OSError: in local mode, if the checkpoint before it could not be written.
        """
        name = checkpoint.new_name(state["step"])
        snapshot = checkpoint.copy_to_host(state) if self._rank == 0 else {}
        if self._writer is None:
            self._report(name, snapshot, metrics)
        elif self._rank == 0:
            self.wait()
            self._pending = self._writer.submit(checkpoint.write, self._run, name, snapshot)

    def _report(self, name: str, snapshot: checkpoint.State, metrics: dict[str, Any]) -> None:
        """Hand the checkpoint to Ray Train, whose upload thread calls `write`."""

        def write(target: Checkpoint, _: str) -> Checkpoint:
            checkpoint.write(self._run, name, snapshot)
            return target

        # Only rank 0 has a checkpoint to give: all ranks hold the same weights.
        target = Checkpoint((self._run / name).path, self._run.filesystem) if self._rank == 0 else None
        ray.train.report(
            metrics,
            checkpoint=target,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write if target else None,
            delete_local_checkpoint_after_upload=False,
        )

    def wait(self) -> None:
        """In local mode, wait until the last checkpoint is written; under Ray Train, Ray does so at the loop's end.

        Raises:
            OSError: if it could not be written.
        """
        if self._pending:
            self._pending.result()
            self._pending = None
