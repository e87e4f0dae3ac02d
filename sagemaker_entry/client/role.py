"""The IAM role of a job or an endpoint."""

import os
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sagemaker_entry.client.checks.access import ROLE_VARIABLE, check_role
from vgg_ddp.flags import UsageError

# On notebook instances and in Studio: https://docs.aws.amazon.com/sagemaker/latest/dg/nbi-metadata.html.
NOTEBOOK_FILE = Path("/opt/ml/metadata/resource-metadata.json")


def find_role(given: str, boto_session: Any) -> str:
    """The ARN of the role from the flag, or else from the environment, or else of this SageMaker notebook.

    Args:
        given: ARN or name; empty if the flag was not given.
        boto_session: boto3's session.

    Raises:
        UsageError: if there is no such role, or it cannot be looked up.
    """
    role = given or os.environ.get(ROLE_VARIABLE, "")
    if role.startswith("arn:") or not (role or NOTEBOOK_FILE.exists()):
        return check_role(role)
    try:
        if role:
            return str(boto_session.client("iam").get_role(RoleName=role)["Role"]["Arn"])
        return _notebook_role(boto_session)
    except (ClientError, BotoCoreError, ValueError) as error:
        raise UsageError(f"--role {role or '(unset)'}: its ARN was not found; use the ARN instead. {error}") from error


def _notebook_role(boto_session: Any) -> str:
    """The role that a SageMaker notebook or Studio was started with."""
    from sagemaker.core.helper.session_helper import Session, get_execution_role

    return str(get_execution_role(Session(boto_session=boto_session)))
