"""Behavior of SageMaker's SDK that its documentation does not promise, each with what happens if it changes.

Nothing here imports or patches a private name. Checked with sagemaker 3.27.0 and botocore 1.43.117;
tests/unit/sagemaker/client/test_sdk.py has a contract test for each function, against the installed SDK.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from vgg_ddp.flags import UsageError

INSTALL = "pip install -r requirements.txt -c constraints.txt"
VALIDATE_ROLE = "SAGEMAKER_VALIDATE_ROLE"
# The calls that submit something, and the parameter with its name.
SUBMISSIONS = {
    "CreateTrainingJob": "TrainingJobName",
    "CreateHyperParameterTuningJob": "HyperParameterTuningJobName",
}
# The answer to every call to S3 in a dry run: all fields that the SDK reads before it submits.
ANSWER = b"<Answer><Buckets/><UploadId>dry-run</UploadId></Answer>"
ANSWER_HEADERS = {"ETag": "dry-run"}


class DryRunError(Exception):
    """Ends a dry run, and carries the request that was not sent."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__("dry run")
        self.request = request


class UnansweredCallError(Exception):
    """A call in a dry run that only AWS could answer. Not a ValueError, which the SDK's Pydantic models would wrap."""


class Submission:
    """Records the name of the job in the request that a boto3 session sends.

    `ModelTrainer.train()` returns None, and the SDK's own examples read the job from the private attribute
    `_latest_training_job`. boto3's event is documented: https://docs.aws.amazon.com/boto3/latest/guide/events.html.
    The SDK does not document that it submits through the session it was given. If it does not, `name` stays None, and
    submit.py prints the command that lists jobs.

    Unnecessary once `train()` returns the job or accepts its name;
    https://github.com/aws/sagemaker-python-sdk/issues/6299 is about `base_job_name` only.
    """

    def __init__(self, boto_session: Any) -> None:
        self.name: str | None = None
        for call in SUBMISSIONS:
            boto_session.events.register(f"provide-client-params.sagemaker.{call}", self._record)

    def _record(self, params: dict[str, Any], model: Any, **_: object) -> None:
        self.name = params[SUBMISSIONS[model.name]]


def require() -> None:
    """Check that boto3 and the SDK are installed, which training and cluster nodes do not need.

    Raises:
        UsageError: with the command that installs them.
    """
    if any(importlib.util.find_spec(name) is None for name in ("boto3", "sagemaker")):
        raise UsageError(f"SageMaker's SDK is not installed: run {INSTALL}.")


def quiet_logs() -> None:
    """Hide the SDK's informational log messages."""
    logging.getLogger("sagemaker").setLevel(logging.WARNING)


def skip_role_check() -> None:
    """Turn off the SDK's own check of the role, and leave it to SageMaker, which names what a role lacks.

    The SDK rejects valid roles: https://github.com/aws/sagemaker-python-sdk/issues/6019. The variable is documented
    only in the SDK's source. If it is renamed, the SDK checks the role again.

    Unnecessary once that issue is fixed and the check no longer asks for permissions that a job does not use, such as
    those for a VPC.
    """
    os.environ[VALIDATE_ROLE] = "false"


def load_defaults(boto_session: Any, is_dry_run: bool) -> dict[str, Any]:
    """The SDK's configuration files (the administrator's and the user's), plus their key TelemetryOptOut.

    This program reports its use to nobody. If the key is renamed, the SDK rejects it as invalid or reports the use.
    Unnecessary once a parameter or an environment variable can opt out of the SDK's telemetry.

    Raises:
        UsageError: if a file is invalid, or is on S3 in a dry run.
    """
    # Imported here because the import takes seconds.
    from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]
    from sagemaker.core.config import load_sagemaker_config
    from yaml import YAMLError

    files = {name: os.environ.get(f"SAGEMAKER_{name}_CONFIG_OVERRIDE", "") for name in ("ADMIN", "USER")}
    for name, file in files.items():
        if is_dry_run and file.startswith("s3://"):
            raise UsageError(
                f"--dry-run does not contact AWS, so it cannot read {file}: copy it, and set "
                f"SAGEMAKER_{name}_CONFIG_OVERRIDE to the copy."
            )
    s3 = boto_session.resource("s3")
    try:
        config: dict[str, Any] = load_sagemaker_config(s3_resource=s3)
    except (ValueError, ValidationError, YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the configuration file of SageMaker's SDK is invalid: {reason}") from error
    config.setdefault("SchemaVersion", "1.0")
    section: dict[str, Any] = config
    for key in ("SageMaker", "PythonSDK", "Modules"):
        section = section.setdefault(key, {})
    section["TelemetryOptOut"] = True
    return config


def skip_bucket_check(boto_session: Any) -> None:
    """Do not ask IAM whether the role may write to the bucket, which the SDK (3.27) does before each upload.

    The user need not have the permission to ask, and IAM has no endpoint in a VPC: each upload would wait for minutes.
    The SDK continues after any error. If it did not, submitting would end with this one.

    Unnecessary once the check can be turned off with SAGEMAKER_VALIDATE_ROLE.
    """
    boto_session.events.register("before-send.iam.SimulatePrincipalPolicy", _refuse)


def _refuse(**_: object) -> None:
    raise UnansweredCallError("the role's access to the bucket is not checked")


def encrypt_uploads(boto_session: Any, key: str) -> None:
    """Encrypt everything that a session uploads to S3 with a KMS key.

    The SDK's tuner (3.27) uploads the source code of a search without the key:
    https://github.com/aws/sagemaker-python-sdk/issues/5956 was fixed for jobs only.
    """
    for call in ("PutObject", "CreateMultipartUpload"):
        boto_session.events.register(f"before-parameter-build.s3.{call}", partial(_encrypt, key))


def _encrypt(key: str, params: dict[str, Any], **_: object) -> None:
    params.update(ServerSideEncryption="aws:kms", SSEKMSKeyId=key)


def complete_request(boto_session: Any, fields: dict[str, Any]) -> None:
    """Add fields to the request that submits: to that of a job, or to a search's definition of its jobs.

    For fields that the SDK cannot set, or that its tuner drops. botocore documents that a handler of
    `before-parameter-build` may change the parameters.
    """
    for call in SUBMISSIONS:
        boto_session.events.register(f"before-parameter-build.sagemaker.{call}", partial(_complete, fields))


def _complete(fields: dict[str, Any], params: dict[str, Any], **_: object) -> None:
    definition = params.get("TrainingJobDefinition", params)
    for name, value in fields.items():
        definition[name] = definition.get(name, {}) | value if isinstance(value, dict) else value


def answer_locally(boto_session: Any) -> None:
    """Answer all calls of a session on this machine, up to the one that submits, which raises DryRunError.

    botocore documents that a handler of `before-send` may answer a request:
    https://docs.aws.amazon.com/botocore/latest/topics/events.html. The SDK does not document which calls it makes
    before it submits: in the versions checked, only calls to S3. If it makes others, the dry run ends with an error
    that names them. No request is sent in any case, and the credentials of a dry run are invalid.

    Unnecessary once the SDK's own dry run returns the request instead of None and uploads nothing; it came with
    https://github.com/aws/sagemaker-python-sdk/pull/6027.
    """
    boto_session.events.register("before-send", _answer)


def _answer(request: Any, event_name: str, **_: object) -> Any:
    from botocore.awsrequest import AWSResponse

    service, call = event_name.split(".")[1:]
    if call in SUBMISSIONS:
        raise DryRunError(json.loads(request.body))
    if service != "s3":
        raise UnansweredCallError(
            f"--dry-run cannot answer {service}.{call}, which this version of the SDK calls first"
        )
    return AWSResponse(request.url, 200, ANSWER_HEADERS, _Body())


class _Body:
    """The body of an answer, as botocore reads it from a connection."""

    def stream(self) -> Iterator[bytes]:
        yield ANSWER
