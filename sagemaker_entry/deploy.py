"""Serve a trained model: python sagemaker_entry/deploy.py --role ARN --job NAME --endpoint NAME ...

The container is SageMaker's own PyTorch image for inference; the model archive brings `code/inference.py` along.

Exit codes: 0 the endpoint answers (or is being made, with --no-wait); 1 AWS refused, or it does not serve; 2 the
input cannot be used.
"""

import dataclasses
import json
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ray_app"))

from settings import check_role
from vgg_ddp.flags import UsageError, parse_flags, quit_with_usage_error
from vgg_ddp.output import outlive_readers

# The newest of SageMaker's PyTorch images for inference that SDK 3.27 lists.
IMAGE_VERSION, IMAGE_PYTHON = "2.6", "py312"
WAIT_SECONDS, WAIT_TRIES = 30, 60
REQUEST_MB = 25
ENVIRONMENT = {
    "SAGEMAKER_PROGRAM": "inference.py",
    "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
    # What an endpoint lets through; by themselves, the images' model servers take 6 MB. One of them reads the first.
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(REQUEST_MB),
    "TS_MAX_REQUEST_SIZE": str(REQUEST_MB * 2**20),
    "TS_MAX_RESPONSE_SIZE": str(REQUEST_MB * 2**20),
}


class EndpointError(Exception):
    """An endpoint that was made and does not serve."""


@dataclasses.dataclass(frozen=True)
class DeployConfig:
    """Serve a model that a job trained, at an HTTPS endpoint."""

    role: str = ""
    """ARN of the IAM role that the container runs as (required unless $SAGEMAKER_ROLE_ARN is set)."""
    region: str | None = None
    """AWS region. Unset: that of your AWS configuration."""
    job: str | None = None
    """Training job whose model to serve."""
    model: str | None = None
    """Or the S3 URI of its model.tar.gz."""
    endpoint: str = "vgg11-ddp"
    """Name of the endpoint."""
    instance_type: str = "ml.c5.large"
    """Machine that serves."""
    instance_count: int = 1
    """How many of them."""
    image: str | None = None
    """Inference image. Unset: SageMaker's PyTorch image for the region and the machine."""
    kms_key: str | None = None
    """KMS key for the machines' disks (of types without a disk of their own)."""
    subnets: tuple[str, ...] = ()
    """Subnets of a VPC to run in."""
    security_groups: tuple[str, ...] = ()
    """Security groups there."""
    wait: bool = True
    """Wait until the endpoint answers."""
    dry_run: bool = False
    """Print the exact requests; send nothing."""

    def __post_init__(self) -> None:
        """Check every value that can be checked without asking AWS.

        Raises:
            UsageError: naming the flag, what was given and what was expected.
        """
        check_role(self.role)
        if bool(self.job) == bool(self.model):
            raise UsageError("expected either --job or --model.")
        if self.dry_run and not self.model:
            raise UsageError("--dry-run asks nobody: expected --model instead of --job.")
        if self.model and not re.fullmatch(r"s3://[^/]+/.+\.tar\.gz", self.model):
            raise UsageError(f"--model {self.model}: expected s3://BUCKET/.../model.tar.gz.")
        if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,47}", self.endpoint):
            raise UsageError(f"--endpoint {self.endpoint}: expected up to 48 letters, digits and '-'.")
        if not re.fullmatch(r"ml\.[\w-]+\.\w+", self.instance_type):
            raise UsageError(f"--instance-type {self.instance_type}: expected ml.FAMILY.SIZE.")
        if self.instance_count < 1:
            raise UsageError(f"--instance-count {self.instance_count}: expected a positive number.")
        if bool(self.subnets) != bool(self.security_groups):
            raise UsageError("--subnets and --security-groups: expected both or neither.")


def requests(config: DeployConfig, region: str, model_uri: str) -> dict[str, dict[str, Any]]:
    """The three requests that make an endpoint, by the name of boto3's method, in their order."""
    name = f"{config.endpoint}-{time.strftime('%Y%m%d%H%M%S')}"
    container = {
        "Image": config.image or find_image(region, config.instance_type),
        "ModelDataUrl": model_uri,
        "Environment": ENVIRONMENT,
    }
    model: dict[str, Any] = {
        "ModelName": name,
        "PrimaryContainer": container,
        "ExecutionRoleArn": check_role(config.role),
    }
    if config.subnets:
        model["VpcConfig"] = {"Subnets": list(config.subnets), "SecurityGroupIds": list(config.security_groups)}
    variant = {
        "VariantName": "all",
        "ModelName": name,
        "InstanceType": config.instance_type,
        "InitialInstanceCount": config.instance_count,
    }
    settings: dict[str, Any] = {"EndpointConfigName": name, "ProductionVariants": [variant]}
    if config.kms_key:
        settings["KmsKeyId"] = config.kms_key
    return {
        "create_model": model,
        "create_endpoint_config": settings,
        "create_endpoint": {"EndpointName": config.endpoint, "EndpointConfigName": name},
    }


def find_image(region: str, instance_type: str) -> str:
    """SageMaker's own PyTorch image for inference.

    Raises:
        UsageError: if the SDK knows none.
    """
    from sagemaker.core import image_uris

    try:
        uri: str = image_uris.retrieve(
            "pytorch",
            region,
            version=IMAGE_VERSION,
            py_version=IMAGE_PYTHON,
            instance_type=instance_type,
            image_scope="inference",
        )
    except ValueError as error:
        raise UsageError(f"no inference image is known for {region} ({error}): give --image.") from error
    return uri


def deploy(config: DeployConfig) -> None:
    """Make the endpoint and, if asked to, wait until it answers."""
    import boto3
    from botocore.exceptions import WaiterError

    session = boto3.Session(region_name=config.region)
    if not session.region_name:
        raise UsageError("--region: no AWS region is configured; give one, such as --region us-east-1.")
    if config.dry_run:
        print(json.dumps(requests(config, session.region_name, config.model or ""), indent=2))
        return
    sagemaker = session.client("sagemaker")
    model_uri = config.model
    if config.job:
        described = sagemaker.describe_training_job(TrainingJobName=config.job)
        if described["TrainingJobStatus"] != "Completed":
            raise UsageError(f"--job {config.job} is {described['TrainingJobStatus']}: expected one that is Completed.")
        model_uri = described["ModelArtifacts"]["S3ModelArtifacts"]
    print(f"Machines:  {config.instance_count} x {config.instance_type}, paid for until the endpoint is deleted")
    for method, request in requests(config, session.region_name, model_uri or "").items():
        getattr(sagemaker, method)(**request)
    deletion = f"aws sagemaker delete-endpoint --endpoint-name {config.endpoint} --region {session.region_name}"
    # Before the wait, which Ctrl-C may end: whoever does so has to pay, too.
    print(f"Endpoint:  {config.endpoint}\nDelete it: {deletion}", flush=True)
    if config.wait:
        waiter = sagemaker.get_waiter("endpoint_in_service")
        delay = {"Delay": WAIT_SECONDS, "MaxAttempts": WAIT_TRIES}
        try:
            waiter.wait(EndpointName=config.endpoint, WaiterConfig=delay)
        except WaiterError:
            described = sagemaker.describe_endpoint(EndpointName=config.endpoint)
            reason = described.get("FailureReason", f"it is {described['EndpointStatus']}")
            raise EndpointError(
                f"endpoint {config.endpoint} does not serve ({reason}). Delete it: {deletion}"
            ) from None
        print("Status:    InService")


def main() -> int:
    try:
        config = parse_flags(DeployConfig, sys.argv[1:], "python sagemaker_entry/deploy.py")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            deploy(config)
        except (BotoCoreError, ClientError, EndpointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except UsageError as error:
        quit_with_usage_error(error)
    except KeyboardInterrupt:
        print("\nStopped waiting; an endpoint that was asked for goes on being made.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
