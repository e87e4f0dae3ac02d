"""Opens the SDK's session for a job or its dry run."""

from functools import partial
from typing import Any

import boto3
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.utils.exceptions import SageMakerCoreError

from sagemaker_entry.client import sdk
from sagemaker_entry.client.errors import ERRORS
from sagemaker_entry.client.settings import JobConfig, check_role
from vgg_ddp.flags import UsageError

# Includes the SDK's own errors, whose import takes seconds.
SDK_ERRORS: tuple[type[Exception], ...] = (*ERRORS, SageMakerCoreError, sdk.UnansweredCallError)


def open_session(config: JobConfig) -> Any:
    """The SDK's session for the job's region and bucket.

    Raises:
        UsageError: if no region is configured.
    """
    sdk.quiet_logs()
    sdk.skip_role_check()
    keys = {"aws_access_key_id": "dry-run", "aws_secret_access_key": "dry-run"} if config.dry_run else {}
    boto_session = boto3.Session(region_name=config.region, **keys)
    if not boto_session.region_name:
        raise UsageError("--region: no AWS region is configured; give one, such as --region us-east-1.")
    if config.kms_key:
        # The SDK uploads source code without the key: https://github.com/aws/sagemaker-python-sdk/issues/5956.
        for call in ("PutObject", "CreateMultipartUpload"):
            boto_session.events.register(f"provide-client-params.s3.{call}", partial(_encrypt, config.kms_key))
    bucket = config.bucket
    if config.dry_run:
        sdk.answer_locally(boto_session)
        account = check_role(config.role).split(":")[4]
        bucket = bucket or f"sagemaker-{boto_session.region_name}-{account}"
    sdk_config = sdk.config_without_telemetry() if config.dry_run else None
    return Session(boto_session=boto_session, default_bucket=bucket, sagemaker_config=sdk_config)


def _encrypt(key: str, params: dict[str, Any], **_: object) -> dict[str, Any]:
    """Add the key to the parameters of an upload."""
    return params | {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}
