"""The metrics of a run as TensorBoard reads them: tensorboard --logdir runs"""

import struct
from collections.abc import Sequence

from vgg_ddp.report import Row
from vgg_ddp.storage import Folder

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
    """Write the event file anew with all epochs, so that a resumed run leaves none twice.

    Equal rows give equal bytes: TensorBoard, which keeps the file open and reads on where it was, finds the old part
    unchanged.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    events = [Event(wall_time=rows[0]["time"], file_version="brain.Event:2")]
    for row in rows:
        values = [Summary.Value(tag=tag, simple_value=row[name]) for name, tag in TAGS.items()]
        events.append(Event(wall_time=row["time"], step=int(row["epoch"]), summary=Summary(value=values)))
    run.overwrite(EVENTS_FILE, b"".join(_record(event.SerializeToString()) for event in events))


def _record(data: bytes) -> bytes:
    """A record of a TFRecord file: length and content, each with its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
