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


def write_events(run: Folder, rows: Sequence[Row]) -> None:
    """Rewrite the event file with all epochs, so that a resumed run has each epoch once.

    Equal rows give equal bytes. TensorBoard keeps the file open and continues reading at its position, so the old part
    must not change. With a validation split, an epoch is tested after the others: its test results come last.
    """
    if has_validation(rows):
        scalars = [_scalars(row, TAGS.keys() - {*TEST_COLUMNS}) for row in rows]
        scalars += [_scalars(row, TEST_COLUMNS) for row in rows if not math.isnan(row["test_accuracy"])]
    else:
        scalars = [_scalars(row, TAGS.keys() - {*VALIDATION_COLUMNS}) for row in rows]
    if events := encode_events(scalars):
        run.overwrite(EVENTS_FILE, events)


def _scalars(row: Row, names: Collection[str]) -> Scalars:
    return row["time"], int(row["epoch"]), {tag: row[name] for name, tag in TAGS.items() if name in names}
