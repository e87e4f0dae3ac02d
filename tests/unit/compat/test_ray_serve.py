"""The change to Ray Serve's replicas, and the fallback if Ray's private module has moved."""

import importlib
import sys

import grpc
import pytest

from vgg_ddp.compat import ray_serve


def port_is_open_at(address: str) -> bool:
    server = grpc.server(None)
    replica = importlib.import_module(ray_serve.REPLICA)
    port = getattr(replica, ray_serve.ADD_PORT)(server, "[::]:0")
    server.start()
    try:
        grpc.channel_ready_future(grpc.insecure_channel(f"{address}:{port}")).result(timeout=1)
    except grpc.FutureTimeoutError:
        return False
    finally:
        server.stop(None)
    return True


def test_private_names_still_exist(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    replica = importlib.import_module(ray_serve.REPLICA)
    monkeypatch.setattr(replica, ray_serve.ADD_PORT, getattr(replica, ray_serve.ADD_PORT))
    # Another address of this machine's loopback interface.
    assert port_is_open_at("127.0.0.2")
    ray_serve.listen_on_loopback()
    assert port_is_open_at("127.0.0.1")
    assert not port_is_open_at("127.0.0.2")
    assert not caplog.records


def test_replicas_start_without_private_names(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, ray_serve.REPLICA, None)
    ray_serve.listen_on_loopback()
    assert len(caplog.records) == 1
