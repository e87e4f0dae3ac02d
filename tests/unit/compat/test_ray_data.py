"""The changes to Ray Data, and the fallback to its normal behavior if its private modules have moved."""

import importlib.util
import logging
import sys
import time
from types import SimpleNamespace

import pytest
from ray.data import DataContext

from vgg_ddp.compat import ray_data


def test_private_names_still_exist(caplog: pytest.LogCaptureFixture) -> None:
    context = DataContext()
    for _ in range(2):
        ray_data.add_idle_backoff(context)
    (callback,) = context.custom_execution_callback_classes
    assert callback in context.execution_callback_classes
    for step in ("before_execution_starts", "on_execution_step", "after_execution_succeeds"):
        getattr(callback(), step)(None)
    assert callable(importlib.import_module(ray_data.COORDINATOR).get_or_create_autoscaling_coordinator)
    assert importlib.util.find_spec(ray_data.PROGRESS_LOGGER)
    ray_data.silence_progress_warning()
    assert not logging.getLogger(ray_data.PROGRESS_LOGGER).isEnabledFor(logging.WARNING)
    assert not caplog.records


def test_runs_start_and_stream_without_private_names(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (ray_data.COORDINATOR, ray_data.EXECUTION_CALLBACK):
        monkeypatch.setitem(sys.modules, module, None)
    context = DataContext()
    for _ in range(2):
        ray_data.start_coordinator()
        ray_data.add_idle_backoff(context)
    assert context.custom_execution_callback_classes == []
    assert len(caplog.records) == 2


def test_streaming_works_without_a_setting_for_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    context = SimpleNamespace()
    ray_data.add_idle_backoff(context)
    assert vars(context) == {}
    assert len(caplog.records) == 1


def test_executor_pauses_only_after_several_quick_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    backoff = ray_data.IdleBackoff()
    for _ in range(13):
        backoff.on_execution_step(None)
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.032, 0.032]
    monkeypatch.setattr(time, "monotonic", lambda: 101.0)
    backoff.on_execution_step(None)
    assert len(pauses) == 8
