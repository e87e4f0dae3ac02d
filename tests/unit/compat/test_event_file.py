"""Event files, and the fallback if tensorboardX has changed. observe/ tests that TensorBoard can read them."""

import struct
import sys

import pytest

from vgg_ddp.compat.tensorboard import encode_events

SCALARS = [(1.5, 1, {"loss": 0.25}), (2.5, 2, {"loss": 0.125})]


def test_events_are_encoded_or_skipped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    events = encode_events(SCALARS)
    assert events is not None
    # Each record: length, checksum, content, checksum.
    lengths, start = [], 0
    while start < len(events):
        lengths.append(struct.unpack_from("<Q", events, start)[0])
        start += 8 + 4 + lengths[-1] + 4
    assert start == len(events) and len(lengths) == 3
    assert not caplog.records
    for module in ("tensorboardX.proto.event_pb2", "tensorboardX.record_writer"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert encode_events(SCALARS) is None
    assert len(caplog.records) == 1
