"""The settings of an endpoint, and the three requests that create it."""

import dataclasses
import re
import time
from typing import Any

from sagemaker_entry.client.images import INFERENCE, find_image
from sagemaker_entry.client.settings import check_network, check_role
from vgg_ddp.flags import UsageError

REQUEST_MB = 25
# Read by the inference images. The last three raise the request limit of the model servers from 6 MB to that of an
# endpoint: MMS (sagemaker-inference 1.10.1) reads the first of them, TorchServe 0.12 the other two.
ENVIRONMENT = {
    "SAGEMAKER_PROGRAM": "inference.py",
    "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(REQUEST_MB),
    "TS_MAX_REQUEST_SIZE": str(REQUEST_MB * 2**20),
    "TS_MAX_RESPONSE_SIZE": str(REQUEST_MB * 2**20),
}


@dataclasses.dataclass(frozen=True)
class DeployConfig:
    """Serve the model of a training job at an HTTPS endpoint."""

    role: str = ""
    """ARN of the IAM role that the container assumes (required unless $SAGEMAKER_ROLE_ARN is set)."""
    region: str | None = None
    """AWS region. Default: the one in your AWS configuration."""
    job: str | None = None
    """Name of the training job whose model to serve."""
    model: str | None = None
    """S3 URI of a model.tar.gz, instead of --job."""
    endpoint: str = "vgg11-ddp"
    """Name of the endpoint."""
    instance_type: str = "ml.c5.large"
    """Instance type for serving."""
    instance_count: int = 1
    """Number of instances."""
    image: str | None = None
    """URI of the inference image. Default: SageMaker's PyTorch image for the region and instance type."""
    kms_key: str | None = None
    """KMS key for the disks of the instances (not for instance types with local disks)."""
    subnets: tuple[str, ...] = ()
    """Subnets of the VPC to run in."""
    security_groups: tuple[str, ...] = ()
    """Security groups of the VPC to run in."""
    wait: bool = True
    """Wait until the endpoint is in service."""
    dry_run: bool = False
    """Print the requests instead of sending them."""

    def __post_init__(self) -> None:
        """Validate what can be validated without calling AWS.

        Raises:
            UsageError: with the flag, its value and what was expected.
        """
        check_role(self.role)
        if bool(self.job) == bool(self.model):
            raise UsageError("expected either --job or --model.")
        if self.dry_run and not self.model:
            raise UsageError("--dry-run does not contact AWS, so it requires --model instead of --job.")
        if self.model and not re.fullmatch(r"s3://[^/]+/.+\.tar\.gz", self.model):
            raise UsageError(f"--model {self.model}: expected s3://BUCKET/.../model.tar.gz.")
        if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,47}", self.endpoint):
            raise UsageError(f"--endpoint {self.endpoint}: expected up to 48 letters, digits and '-'.")
        if not re.fullmatch(r"ml\.[\w-]+\.\w+", self.instance_type):
            raise UsageError(f"--instance-type {self.instance_type}: expected ml.FAMILY.SIZE.")
        if self.instance_count < 1:
            raise UsageError(f"--instance-count {self.instance_count}: expected a positive number.")
        check_network(self.subnets, self.security_groups)


def build_requests(config: DeployConfig, region: str, model_uri: str) -> dict[str, dict[str, Any]]:
    """The requests that create the endpoint, by boto3 method, in the order in which to send them."""
    name = f"{config.endpoint}-{time.strftime('%Y%m%d%H%M%S')}"
    model: dict[str, Any] = {
        "ModelName": name,
        "PrimaryContainer": {
            "Image": config.image or find_image(INFERENCE, region, config.instance_type),
            "ModelDataUrl": model_uri,
            "Environment": ENVIRONMENT,
        },
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
