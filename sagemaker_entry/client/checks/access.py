"""The role and the network of a job or an endpoint."""

import os
import re

from vgg_ddp.flags import UsageError

ROLE_VARIABLE = "SAGEMAKER_ROLE_ARN"


def check_network(subnets: tuple[str, ...], security_groups: tuple[str, ...]) -> None:
    """Require subnets and security groups together, as SageMaker does.

    Raises:
        UsageError: if only one of them was given.
    """
    if bool(subnets) != bool(security_groups):
        raise UsageError("--subnets and --security-groups must be used together.")


def check_role(given: str) -> str:
    """The role from the flag, or else from the environment.

    Raises:
        UsageError: if it is not the ARN of a role.
    """
    role = given or os.environ.get(ROLE_VARIABLE, "")
    if not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/\S+", role):
        raise UsageError(f"--role {role or '(unset)'}: expected arn:aws:iam::ACCOUNT:role/NAME.")
    return role


def check_role_or_name(given: str, is_dry_run: bool) -> None:
    """Check the role from the flag, or else from the environment, as far as possible without calling AWS.

    There may be none: `find_role` knows other places.

    Raises:
        UsageError: if it is neither an ARN nor a name, or a name although a dry run cannot look up its ARN.
    """
    role = given or os.environ.get(ROLE_VARIABLE, "")
    if role and (is_dry_run or not re.fullmatch(r"[\w+=,.@-]{1,64}", role)):
        check_role(role)
