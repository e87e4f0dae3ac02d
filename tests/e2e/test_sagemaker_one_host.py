"""A SageMaker job on one host: stopped and resumed, and its model archive."""

import json
import os
from pathlib import Path

import pytest

from support.command import ROOT
from support.job_checks import OneHost, assert_model, steps

pytestmark = pytest.mark.e2e
DECODER = ("__init__", "decode", "image_files", "opaque")


def test_one_host_saves_a_checkpoint_on_sigterm_within_a_minute(one_host: OneHost) -> None:
    assert one_host.first_code == 143, one_host.first.log
    assert one_host.seconds_to_stop < 60
    assert one_host.first.failure and one_host.first.failure.startswith("stopped by SIGTERM")
    (saved,) = steps(r"Stopped after step (\d+)", one_host.first)
    assert 0 < saved < 50
    assert not list((one_host.first.ml / "model").iterdir())


def test_restarted_job_resumes_at_that_step_and_writes_a_model(one_host: OneHost) -> None:
    assert one_host.second_code == 0, one_host.second.log
    assert one_host.second.failure is None
    saved = steps(r"Stopped after step (\d+)", one_host.first)
    assert steps(r"Resumed at step (\d+)", one_host.second) == saved
    assert_model(one_host.second)


def test_object_store_is_on_disk_if_shared_memory_is_tiny(one_host: OneHost) -> None:
    assert "--plasma-directory=/tmp" in one_host.first.log
    assert "bundled CIFAR-10 sample: 5,000 training" in one_host.first.log


def test_one_host_listens_on_loopback_only_and_requires_the_token(one_host: OneHost) -> None:
    assert one_host.exposed == []
    assert one_host.dashboard_without_token == "401"
    assert one_host.dashboard_with_token == "200"
    assert len(one_host.token) == 64
    assert one_host.token not in json.dumps(one_host.request, default=str) + one_host.first.log + one_host.second.log


def test_archive_contains_only_the_scripts_and_their_modules(one_host: OneHost) -> None:
    code = one_host.second.ml / "model" / "code"
    files = {str(Path(root, name).relative_to(code)) for root, _, names in os.walk(code) for name in names}
    package = {f"vgg_ddp/data/{name}.py" for name in DECODER}
    package |= {f"vgg_ddp/serving/{name}.py" for name in ("__init__", "contract", "network")}
    package |= {f"vgg_ddp/model/{path.name}" for path in (ROOT / "ray_app/vgg_ddp/model").glob("*.py")}
    assert files == {"inference.py", "deployment.py", *package}
