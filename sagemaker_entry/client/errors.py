"""Errors that end submit.py and deploy.py with one line and exit code 1."""

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError


class SubmissionError(Exception):
    """A request that SageMaker's SDK rejected, or could not build."""


class NotCompletedError(Exception):
    """A job that failed or was stopped."""


class WaitError(Exception):
    """A wait that failed before its job ended."""


class EndpointError(Exception):
    """An endpoint that was created but did not come into service."""


# Raised by calls to AWS.
AWS_ERRORS: tuple[type[Exception], ...] = (Boto3Error, BotoCoreError, ClientError)
ERRORS: tuple[type[Exception], ...] = (*AWS_ERRORS, SubmissionError, NotCompletedError, WaitError, EndpointError)
