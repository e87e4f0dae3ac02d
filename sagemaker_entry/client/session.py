"""Opens the SDK's session for a job or its dry run."""

from typing import Any

from sagemaker.core.helper.session_helper import Session
from sagemaker.core.utils.exceptions import SageMakerCoreError

from sagemaker_entry.client import sdk
from sagemaker_entry.client.checks.access import check_role
from sagemaker_entry.client.defaults import with_defaults
from sagemaker_entry.client.region import open_boto_session
from sagemaker_entry.client.settings import JobConfig

# Not in errors.py, because importing the SDK takes seconds.
SDK_ERRORS: tuple[type[Exception], ...] = (SageMakerCoreError, sdk.UnansweredCallError)


def open_session(config: JobConfig) -> Any:
    """The SDK's session for the job's region and bucket.

    Raises:
        UsageError: if no region is configured.
    """
    sdk.quiet_logs()
    sdk.skip_role_check()
    keys = {"aws_access_key_id": "dry-run", "aws_secret_access_key": "dry-run"} if config.dry_run else {}
    boto_session = open_boto_session(config.region, **keys)
    if config.dry_run:
        sdk.answer_locally(boto_session)
    else:
        sdk.skip_bucket_check(boto_session)
    file = sdk.load_defaults(boto_session, config.dry_run)
    bucket = config.bucket or _default_bucket(file)
    if config.dry_run and not bucket:
        account = check_role(with_defaults(config, file).role).split(":")[4]
        bucket = f"sagemaker-{boto_session.region_name}-{account}"
    return Session(boto_session=boto_session, default_bucket=bucket, sagemaker_config=file)


def _default_bucket(file: dict[str, Any]) -> str | None:
    """The bucket that the SDK's configuration file names."""
    bucket = file["SageMaker"]["PythonSDK"]["Modules"].get("Session", {}).get("DefaultS3Bucket")
    return str(bucket) if bucket else None
