"""The connection to AWS, and its dry run: the same calls, which then end here instead of at AWS."""

import json
import logging
import os
from functools import partial
from types import SimpleNamespace
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.utils.exceptions import SageMakerCoreError

from settings import JobConfig, check_role
from vgg_ddp.flags import UsageError

# Calls of the SDK that a dry run ends at, with the request as it would go over the wire.
FINAL_CALLS = ("CreateTrainingJob", "CreateHyperParameterTuningJob")
# What the SDK reads from the answers to the calls before that.
ANSWER: dict[str, Any] = {"Buckets": [], "UploadId": "dry-run", "ETag": "dry-run"}


class NotCompletedError(Exception):
    """A job that ended before its work was done."""


class WaitError(Exception):
    """A wait that ended before its job did."""


# What AWS, or the way to it, may answer.
AWS_ERRORS: tuple[type[Exception], ...] = (Boto3Error, BotoCoreError, ClientError)
# Or the SDK, or the job itself: each is one clear line.
ERRORS = (*AWS_ERRORS, SageMakerCoreError, NotCompletedError, WaitError)


class DryRunError(Exception):
    """Carries the request that a dry run did not send."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__("dry run")
        self.request = request


def open_session(config: JobConfig) -> Any:
    """The SDK's session for the job's region and bucket.

    Raises:
        UsageError: if no region is known.
    """
    logging.getLogger("sagemaker").setLevel(logging.WARNING)
    boto_session = boto3.Session(region_name=config.region)
    if not boto_session.region_name:
        raise UsageError("--region: no AWS region is configured; give one, such as --region us-east-1.")
    bucket = config.bucket
    if config.kms_key:
        # The SDK's tuner would upload the source code without it.
        for call in ("PutObject", "CreateMultipartUpload"):
            boto_session.events.register(f"provide-client-params.s3.{call}", partial(_encrypt, config.kms_key))
    # The SDK would refuse a role that lacks permissions which this job has no use for, such as those of a VPC.
    # SageMaker itself says in one line what a role lacks.
    os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"
    if config.dry_run:
        boto_session.events.register("before-call", _answer_here)
        account = check_role(config.role).split(":")[4]
        bucket = bucket or f"sagemaker-{boto_session.region_name}-{account}"
    return Session(boto_session=boto_session, default_bucket=bucket)


def _encrypt(key: str, params: dict[str, Any], **_: object) -> dict[str, Any]:
    """The parameters of an upload, with the key."""
    return params | {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}


def _answer_here(model: Any, params: dict[str, Any], **_: object) -> tuple[Any, dict[str, Any]]:
    """Keep a call from being sent; at the last one, hand out the request.

    See https://docs.aws.amazon.com/boto3/latest/guide/events.html.
    """
    if model.name in FINAL_CALLS:
        raise DryRunError(json.loads(params["body"]))
    return SimpleNamespace(status_code=200, headers={}), ANSWER
