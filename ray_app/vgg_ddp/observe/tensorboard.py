"""Write the metrics of a run for TensorBoard: tensorboard --logdir runs"""

from collections.abc import Sequence

from vgg_ddp.compat.tensorboard import encode_events
from vgg_ddp.run.files import Row
from vgg_ddp.run.storage import Folder

EVENTS_FILE = "events.out.tfevents"
# TensorBoard's groups of curves, by the columns of metrics.csv.
TAGS = {
    "loss": "loss/training",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/training",
    "test_accuracy": "accuracy/test",
    "lr": "training/lr",
    "images_per_second": "training/images_per_second",
}


def write_events(run: Folder, rows: Sequence[Row]) -> None:
    """Rewrite the event file with all epochs, so that a resumed run has each epoch once.

    Equal rows give equal bytes. TensorBoard keeps the file open and continues reading at its position, so the old part
    must not change.
    """
    scalars = [(row["time"], int(row["epoch"]), {tag: row[name] for name, tag in TAGS.items()}) for row in rows]
    if events := encode_events(scalars):
        run.overwrite(EVENTS_FILE, events)
