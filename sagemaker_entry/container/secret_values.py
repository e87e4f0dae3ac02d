"""Environment variables that name a secret by its ARN: their values, fetched when the job starts."""

import re
from collections.abc import Mapping

from sagemaker_entry.container.outcome import BAD_INPUT, JobError
from sagemaker_entry.contract import SECRET_ARN

CONNECT_SECONDS, ATTEMPTS = 10, 3


def fetch_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The values of the variables whose value is the ARN of a secret in Secrets Manager.

    Raises:
        JobError: naming the variable, if the secret cannot be read.
    """
    found = {name: match for name, value in environment.items() if (match := re.fullmatch(SECRET_ARN, value))}
    if not found:
        return {}
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise JobError(BAD_INPUT, f"{min(found)} is the ARN of a secret, which requires boto3 in the image") from error
    config = Config(connect_timeout=CONNECT_SECONDS, retries={"total_max_attempts": ATTEMPTS})
    values = {}
    for name, match in found.items():
        client = boto3.client("secretsmanager", region_name=match[1], config=config)
        try:
            values[name] = client.get_secret_value(SecretId=match[0])["SecretString"]
        except (BotoCoreError, ClientError) as error:
            raise JobError(BAD_INPUT, f"the secret of {name} cannot be read: {error}") from error
        except KeyError:
            raise JobError(BAD_INPUT, f"the secret of {name} is binary: expected text") from None
    return values
