"""The environment variables that the driver sets for Ray."""

import os
from pathlib import Path

import pytest

from vgg_ddp.driver.ray_environment import LOCAL, prepare
from vgg_ddp.machine.code import PACKAGE

WAIT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@pytest.fixture(autouse=True)
def empty_environment(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": str(private_home), "RAY_TMPDIR": str(private_home)})


def test_elastic_run_does_not_wait_long_for_a_lost_machine() -> None:
    for elastic, seconds in ((False, "1200"), (True, "10")):
        os.environ.pop(WAIT, None)
        assert prepare("head:6379", elastic=elastic) == "head:6379"
        assert os.environ[WAIT] == seconds


def test_address_comes_from_the_flag_or_the_environment_or_a_cluster_is_started() -> None:
    assert prepare(None) == LOCAL
    os.environ["RAY_ADDRESS"] = "other:6379"
    assert prepare(None) == "other:6379"
    assert prepare("head:6379") == "head:6379"
    assert prepare("auto") == "other:6379"
    del os.environ["RAY_ADDRESS"]
    assert prepare("auto") == "auto"


def test_user_settings_are_kept() -> None:
    os.environ |= {WAIT: "3600", "PYTHONPATH": ":mine:"}
    prepare(None)
    assert os.environ[WAIT] == "3600"
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(PACKAGE.parent), "mine"]


def test_only_a_cluster_started_by_the_run_is_restricted_to_loopback() -> None:
    prepare("head:6379")
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ and "PYTHONPATH" not in os.environ
    prepare(None)
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
