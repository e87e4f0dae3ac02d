import pytest

from sagemaker_entry.client.checks.environment import parse_environment
from vgg_ddp.flags import UsageError


def test_values_are_kept_as_they_are() -> None:
    texts = ["NCCL_DEBUG=INFO", "HTTPS_PROXY=http://me@proxy:8080/?a=b", 'QUOTED=it\'s "$HOME"\n`x`', "EMPTY="]
    assert parse_environment(texts) == {
        "NCCL_DEBUG": "INFO",
        "HTTPS_PROXY": "http://me@proxy:8080/?a=b",
        "QUOTED": 'it\'s "$HOME"\n`x`',
        "EMPTY": "",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NCCL_DEBUG", r"--env: expected NAME=VALUE\."),
        ("my-name=x", r"--env my-name: expected NAME=VALUE\."),
        ("SM_LOG_LEVEL=20", "--env SM_LOG_LEVEL: SageMaker or this program sets this variable"),
        ("VGG_JOIN_SECONDS=1", "--env VGG_JOIN_SECONDS: SageMaker or this program sets"),
        ("TRAINING_JOB_NAME=x", "--env TRAINING_JOB_NAME: SageMaker or this program sets"),
        ("RAY_AUTH_TOKEN=x", "--env RAY_AUTH_TOKEN: SageMaker or this program sets"),
        ("LONG=" + "x" * 513, "--env LONG: expected at most 512 characters"),
        ("DB_PASSWORD=hunter22", "--env DB_PASSWORD: everyone .* give its ARN"),
        ("DB_PASSWORD=arn:aws:s3:::hunter22", "--env DB_PASSWORD: everyone .* give its ARN"),
        ("PIP_INDEX_URL=https://me:hunter22@pypi/simple", "--env PIP_INDEX_URL: everyone .* give its ARN"),
        ("PIP_INDEX_URL=https://hunter22-hunter22@pypi/simple", "--env PIP_INDEX_URL: everyone .* give its ARN"),
        ("=hunter22", r"--env: expected NAME=VALUE\."),
    ],
)
def test_invalid_variable_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_environment([text])
    assert "hunter22" not in str(caught.value)


def test_secret_is_given_by_its_arn() -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:db"
    assert parse_environment([f"DB_PASSWORD={arn}"]) == {"DB_PASSWORD": arn}


def test_search_has_room_for_fewer_variables() -> None:
    texts = [f"NAME_{number}=x" for number in range(47)]
    assert len(parse_environment(texts)) == 47
    with pytest.raises(UsageError, match="47 variables; SageMaker allows 46"):
        parse_environment(texts, is_search=True)
