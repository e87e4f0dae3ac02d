"""Ray still has the setting that makes its processes listen only on loopback."""

import inspect
import logging

import pytest
from ray._private import ray_constants as constants_of_ray
from ray._private import services

from vgg_ddp.compat import fallback, ray_constants, ray_variables


def test_ray_reads_the_setting_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    (variable,) = ray_variables.LOOPBACK_ONLY
    assert variable == constants_of_ray.ENABLE_RAY_CLUSTERS_ENV_VAR
    monkeypatch.setattr(constants_of_ray, ray_constants.LISTENS_ON_NETWORK, True)
    with ray_constants.restored_network_setting():
        ray_constants.listen_on_loopback_only()
        assert constants_of_ray.ENABLE_RAY_CLUSTER is False
    assert constants_of_ray.ENABLE_RAY_CLUSTER is True
    assert f"ray_constants.{ray_constants.LISTENS_ON_NETWORK}" in inspect.getsource(services)


def test_moved_setting_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fallback.log_fallback.cache_clear()
    monkeypatch.setattr(ray_constants, "LISTENS_ON_NETWORK", "MOVED")
    with caplog.at_level(logging.WARNING):
        ray_constants.listen_on_loopback_only()
    assert "Ray's ports can be reached from the network" in caplog.text
