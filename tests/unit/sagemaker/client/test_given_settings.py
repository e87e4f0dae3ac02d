"""Settings given in Python are checked by name and type, as those of the command are."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagemaker_entry.client.checks.given import check_given
from sagemaker_entry.client.endpoint import DeployConfig
from sagemaker_entry.client.settings import JobConfig
from sagemaker_entry.submission import undisturbed
from vgg_ddp.flags import UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": "15"}, "--epochs '15': expected an integer."),
        ({"epochs": 1.5}, "--epochs 1.5: expected an integer."),
        ({"epochs": True}, "--epochs True: expected an integer."),
        ({"lr": "0.1"}, "--lr '0.1': expected a number."),
        ({"spot": "no"}, "--spot 'no': expected True or False."),
        ({"image": 5}, "--image 5: expected a string."),
        ({"recipe": "clasic"}, "--recipe 'clasic': expected one of fast, classic."),
        ({"subnets": "subnet-1"}, "--subnets: expected a list of strings."),
        ({"env": {"NAME": "secret"}}, "--env: expected a list of strings."),
        ({"tags": ["team=vision", 7]}, "--tags: expected a list of strings."),
        ({"batch-size": 64}, "unknown setting batch-size. Did you mean batch_size?"),
        ({"GROUPS": {}}, "unknown setting GROUPS."),
    ],
)
def test_wrong_name_or_type_is_a_usage_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_given(JobConfig, settings)
    assert str(caught.value) == message


def test_none_means_unset_and_values_of_other_libraries_are_accepted() -> None:
    settings = {"resume": None, "epochs": np.int64(3), "lr": np.float32(0.5), "data": Path("/images"), "tags": ["a=b"]}
    checked = check_given(JobConfig, settings)
    assert checked == {"epochs": 3, "lr": 0.5, "data": "/images", "tags": ("a=b",)}
    assert [type(value) for value in checked.values()] == [int, float, str, tuple]
    with pytest.raises(UsageError, match="unknown setting instances"):
        check_given(DeployConfig, {"instances": 2})


def test_submissions_take_turns_and_leave_the_environment_of_other_threads_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SAGEMAKER_VALIDATE_ROLE", raising=False)
    inside = threading.Event()

    def submit() -> None:
        with undisturbed():
            inside.set()

    with undisturbed():
        os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"
        monkeypatch.setenv("OF_ANOTHER_THREAD", "1")
        other = threading.Thread(target=submit)
        other.start()
        assert not inside.wait(0.2)
    other.join()
    assert inside.is_set()
    assert "SAGEMAKER_VALIDATE_ROLE" not in os.environ and os.environ["OF_ANOTHER_THREAD"] == "1"
