"""Encode scalars in the format of TensorBoard's event files. Tested with tensorboardX 2.6.5."""

import struct
from collections.abc import Mapping, Sequence

from vgg_ddp.compat.fallback import log_fallback

# The time in seconds since 1970, the step, and the value of each tag.
Scalars = tuple[float, int, Mapping[str, float]]


def encode_events(scalars: Sequence[Scalars], is_start: bool = True) -> bytes | None:
    """The content of an event file, or its continuation; None if tensorboardX no longer has the required modules.

    Equal scalars give equal bytes. No longer needed once the public SummaryWriter can write to a given file name,
    without the host name and the current time: https://github.com/lanpa/tensorboardX/issues/198.
    """
    try:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        events = [Event(wall_time=scalars[0][0], file_version="brain.Event:2")] if is_start else []
        for seconds, step, values in scalars:
            summary = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            events.append(Event(wall_time=seconds, step=step, summary=Summary(value=summary)))
        return b"".join(_record(event.SerializeToString()) for event in events)
    except (ImportError, AttributeError):
        log_fallback("tensorboardX.proto and tensorboardX.record_writer", "no file for TensorBoard is written")
        return None


def _record(data: bytes) -> bytes:
    """A record of a TFRecord file: length and content, each with its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
