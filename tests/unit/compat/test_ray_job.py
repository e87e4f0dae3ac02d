"""Ray still has what keeps the driver's folders out of the workers' module search path."""

import inspect
import logging

import pytest
from ray._private import worker
from ray.job_config import JobConfig

from vgg_ddp.compat import fallback, ray_job


def test_ray_adds_its_folders_only_to_the_list_that_stays_empty() -> None:
    paths = getattr(ray_job.job_config(), ray_job.PATHS)
    paths.extend(["/script", "/working/directory"])
    assert paths == []
    # Ray reads it there, and changes it in no other way.
    assert inspect.getsource(worker).count(ray_job.PATHS) == 1
    assert f"job_config.{ray_job.PATHS}.extend(code_paths)" in inspect.getsource(worker)


def test_moved_list_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fallback.log_fallback.cache_clear()
    monkeypatch.setattr(ray_job, "PATHS", "_moved")
    with caplog.at_level(logging.WARNING):
        assert isinstance(ray_job.job_config(), JobConfig)
    assert "workers also search the working directory for modules" in caplog.text
