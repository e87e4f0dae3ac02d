"""boto3's session for a region."""

from typing import Any

from vgg_ddp.flags import UsageError


def open_boto_session(region: str | None, **credentials: str) -> Any:
    """A boto3 session with a region.

    Args:
        region: AWS region; None for the one in the AWS configuration.
        credentials: keys of boto3.Session; by default, boto3 finds them.

    Raises:
        UsageError: if no region is configured.
    """
    import boto3

    session = boto3.Session(region_name=region, **credentials)
    if not session.region_name:
        raise UsageError("--region: no AWS region is configured; give one, such as --region us-east-1.")
    return session
