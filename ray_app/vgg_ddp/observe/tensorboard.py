"""Write the metrics of a run for TensorBoard: tensorboard --logdir runs"""

import math
from collections.abc import Collection, Sequence

from vgg_ddp.compat.tensorboard import Scalars, encode_events
from vgg_ddp.run.files import TEST_COLUMNS, VALIDATION_COLUMNS, Row, has_validation
from vgg_ddp.run.storage import Folder

EVENTS_FILE = "events.out.tfevents"
# TensorBoard's groups of curves, by the columns of metrics.csv.
TAGS = {
    "loss": "loss/training",
    "test_loss": "loss/test",
    "validation_loss": "loss/validation",
    "train_accuracy": "accuracy/training",
    "test_accuracy": "accuracy/test",
    "validation_accuracy": "accuracy/validation",
    "lr": "training/lr",
    "images_per_second": "training/images_per_second",
}


class EventFile:
    """TensorBoard's file of a run.

    It has each epoch once, also after a resume. TensorBoard keeps it open and continues reading at its position, so the
    old part must not change: equal rows give equal bytes.
    """

    def __init__(self, run: Folder) -> None:
        self._run = run
        self._rows: Sequence[Row] = []
        self._content = b""

    def write(self, rows: Sequence[Row]) -> None:
        """Write all epochs. Only those after the epochs of the last call are encoded: a run may have thousands."""
        if not rows or rows == self._rows:
            return
        known = len(self._rows)
        # With a validation split, an epoch is tested after the others: its test results come last.
        continues = known > 0 and rows[:known] == self._rows and not has_validation(rows)
        added = encode_events(_all_scalars(rows[known:] if continues else rows), is_start=not continues)
        if added is not None:
            content = self._content + added if continues else added
            self._run.overwrite(EVENTS_FILE, content)
            self._content = content
        self._rows = rows


def _all_scalars(rows: Sequence[Row]) -> list[Scalars]:
    if not has_validation(rows):
        return [_scalars(row, TAGS.keys() - {*VALIDATION_COLUMNS}) for row in rows]
    tested = [_scalars(row, TEST_COLUMNS) for row in rows if not math.isnan(row["test_accuracy"])]
    return [_scalars(row, TAGS.keys() - {*TEST_COLUMNS}) for row in rows] + tested


def _scalars(row: Row, names: Collection[str]) -> Scalars:
    return row["time"], int(row["epoch"]), {tag: row[name] for name, tag in TAGS.items() if name in names}
