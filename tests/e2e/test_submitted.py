"""What submit.py shows of a job that SageMaker refuses, or runs for a while."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_sagemaker import ROLE, Service, service

pytestmark = pytest.mark.e2e


@pytest.fixture
def sagemaker(sdk_environment: dict[str, str]) -> Iterator[Service]:
    # The region comes from the flags alone.
    environment = {name: value for name, value in sdk_environment.items() if name != "AWS_DEFAULT_REGION"}
    with service(environment) as made:
        yield made


def test_role_that_sagemaker_refuses_is_one_line(sagemaker: Service, tmp_path: Path) -> None:
    reason = f"Could not assume role {ROLE}. Please ensure that the role exists."
    sagemaker.refusals["CreateTrainingJob"] = ("ValidationException", reason)
    result = sagemaker.submit(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith(reason)
    assert "Job:" not in result.stdout
