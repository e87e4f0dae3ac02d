"""Spare processes of workers: Ray still has the request for them, and nothing else fails without it."""

import importlib
import sys
import time

import pytest

from support.command import wait_until
from vgg_ddp.compat import ray_spares, ray_variables
from vgg_ddp.compat.ray_spares import GENERATED, KEPT_FOR, load, start_spare


def test_ray_has_the_request_and_calls_the_function_that_the_variable_names() -> None:
    messages, services = (importlib.import_module(f"{GENERATED}.node_manager_pb2{part}") for part in ("", "_grpc"))
    request = messages.PrestartWorkersRequest(
        language=importlib.import_module(f"{GENERATED}.common_pb2").PYTHON,
        job_id=b"\1\0\0\0",
        runtime_env_info={"serialized_runtime_env": "{}"},
        keep_alive_duration_secs=KEPT_FOR,
        num_workers=1,
    )
    assert messages.PrestartWorkersRequest.FromString(request.SerializeToString()) == request
    assert hasattr(services.NodeManagerServiceServicer, "PrestartWorkers")
    setup_hook = importlib.import_module("ray._private.runtime_env.setup_hook")
    (function,) = ray_variables.WORKER_SETUP.values()
    assert setup_hook.load_class(function) is load


def test_missing_request_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, f"{GENERATED}.node_manager_pb2", None)
    for _ in range(2):
        start_spare()
    assert caplog.text.count("training continues some seconds later after a failure") == 1


def test_module_that_cannot_be_imported_is_left_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vgg_ddp.worker.train", None)
    load()
    with pytest.raises(ImportError):
        importlib.import_module("vgg_ddp.worker.train")


@pytest.mark.parametrize(
    ("wanted", "workers", "seconds_of_training", "starts"),
    [(True, 1, 0.0, True), (True, 2, 0.5, False), (True, 1, 0.0, False), (False, 1, 0.5, False)],
)
def test_spare_process_is_started_unless_memory_is_scarce_or_training_ends_first(
    monkeypatch: pytest.MonkeyPatch, wanted: bool, workers: int, seconds_of_training: float, starts: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(ray_spares, "SECONDS_BEFORE_START", 0.1)
    monkeypatch.setattr(ray_spares, "available_memory_bytes", lambda: 3 * 2**30)
    monkeypatch.setattr(ray_spares, "start_spare", lambda: calls.append(1))
    with ray_spares.spare_kept(wanted, workers):
        if starts:
            wait_until(lambda: bool(calls), seconds=30)
        time.sleep(seconds_of_training)
    time.sleep(0.2)
    assert bool(calls) is starts
