"""The settings of an endpoint, and the requests that create, update, and scale it."""

import dataclasses
import datetime
import re
from typing import Any

from sagemaker_entry.client.autoscaling import VARIANT, Requests, scaling_requests
from sagemaker_entry.client.checks.access import check_network, check_role, check_role_or_name
from sagemaker_entry.client.checks.machines import check_machine
from sagemaker_entry.client.images import INFERENCE, find_image
from sagemaker_entry.client.settings import S3_PREFIX
from vgg_ddp.flags import UsageError, flag

REQUEST_MB = 25
# Of the PyTorch inference images. The last three raise the request limit of their model servers from 6 MB to that of an
# endpoint: MMS (sagemaker-inference 1.10.1) reads the first of them, TorchServe 0.12 the other two. All versions of
# deploy.py give them to their models, which --delete recognizes by them.
MARK = {
    "SAGEMAKER_PROGRAM": "inference.py",
    "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(REQUEST_MB),
    "TS_MAX_REQUEST_SIZE": str(REQUEST_MB * 2**20),
    "TS_MAX_RESPONSE_SIZE": str(REQUEST_MB * 2**20),
}
# Of AWS's Ray Serve image: the application in the archive's `code/`.
ENVIRONMENT = MARK | {"SM_RAYSERVE_APP": "deployment:app", "RAY_USAGE_STATS_ENABLED": "0"}
# The drivers of the default machine image are too old for CUDA 12.9, which AWS's Ray Serve image contains. See
# https://aws.github.io/deep-learning-containers/ray/deployment/sagemaker/.
GPU_IMAGE, GPU_MACHINE_IMAGE = "/ray:serve-ml-sagemaker-cuda", "al2-ami-sagemaker-inference-gpu-3-1"


@dataclasses.dataclass(frozen=True)
class DeployConfig:
    """Serve the model of a training job at an HTTPS endpoint."""

    role: str = ""
    """ARN or name of the IAM role that the container assumes. Default: $SAGEMAKER_ROLE_ARN; on a SageMaker notebook,
    its execution role."""
    region: str | None = None
    """AWS region. Default: the one in your AWS configuration."""
    job: str | None = None
    """Name of the training job whose model to serve."""
    model: str | None = None
    """S3 URI of a model.tar.gz, instead of --job."""
    endpoint: str = "vgg11-ddp"
    """Name of the endpoint."""
    update: bool = False
    """Replace the model and the settings of an existing endpoint, without downtime."""
    delete: bool = False
    """Delete the endpoint, its scaling, and the configurations and models that this command created for it."""
    instance_type: str = "ml.c5.large"
    """Instance type for serving."""
    instance_count: int = 1
    """Number of instances; with --max-instances, the smallest number."""
    max_instances: int | None = None
    """Scale automatically, up to this number of instances."""
    target_requests: int = 600
    """With --max-instances, requests per minute and instance above which to add instances."""
    capture_uri: str | None = None
    """S3 URI under which to store requests and responses."""
    capture_percent: int = 100
    """With --capture-uri, percentage of the requests to store."""
    image: str | None = None
    """URI of the inference image: AWS's Ray Serve image, which is the default, or a PyTorch inference image."""
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
        if self.delete:
            self._check_deletion()
        else:
            self._check_model()
        if self.model and not re.fullmatch(r"s3://[^/]+/.+\.tar\.gz", self.model):
            raise UsageError(f"--model {self.model}: expected s3://BUCKET/.../model.tar.gz.")
        if not re.fullmatch(r"(?=.{1,48}$)[a-zA-Z0-9](-*[a-zA-Z0-9])*", self.endpoint):
            raise UsageError(f"--endpoint {self.endpoint}: expected up to 48 letters, digits and '-'.")
        if not re.fullmatch(r"ml\.[\w-]+\.\w+", self.instance_type):
            raise UsageError(f"--instance-type {self.instance_type}: expected ml.FAMILY.SIZE.")
        check_machine("instance_type", self.instance_type, has_own_image=bool(self.image))
        if self.instance_count < 1:
            raise UsageError(f"--instance-count {self.instance_count}: expected a positive number.")
        if self.kms_key == "":
            raise UsageError("--kms-key : expected a KMS key.")
        check_network(self.subnets, self.security_groups)
        self._check_scaling()
        self._check_capture()

    def _check_deletion(self) -> None:
        """Require no flags that a deletion ignores."""
        for name in ("update", "dry_run", "job", "model"):
            if getattr(self, name):
                raise UsageError(f"--delete cannot be combined with {flag(name)}.")

    def _check_model(self) -> None:
        check_role_or_name(self.role, self.dry_run)
        if bool(self.job) == bool(self.model):
            raise UsageError("expected either --job or --model.")
        if self.dry_run and not self.model:
            raise UsageError("--dry-run does not contact AWS, so it requires --model instead of --job.")

    def _check_scaling(self) -> None:
        if self.max_instances is None:
            if self.target_requests != DeployConfig.target_requests:
                raise UsageError("--target-requests requires --max-instances.")
            return
        if self.max_instances < self.instance_count:
            raise UsageError(
                f"--max-instances {self.max_instances}: expected at least --instance-count {self.instance_count}."
            )
        if self.target_requests < 1:
            raise UsageError(f"--target-requests {self.target_requests}: expected a positive number.")
        if not self.wait:
            raise UsageError(
                "--max-instances cannot be combined with --no-wait: only an endpoint in service can scale."
            )

    def _check_capture(self) -> None:
        if self.capture_uri is None:
            if self.capture_percent != DeployConfig.capture_percent:
                raise UsageError("--capture-percent requires --capture-uri.")
            return
        if not re.fullmatch(S3_PREFIX, self.capture_uri):
            raise UsageError(f"--capture-uri {self.capture_uri}: expected s3://BUCKET/PREFIX.")
        if not 1 <= self.capture_percent <= 100:
            raise UsageError(f"--capture-percent {self.capture_percent}: expected 1 to 100.")


def own_name(endpoint: str, name: str) -> bool:
    """Whether this is the name of a model or configuration that build_requests created for the endpoint."""
    return re.fullmatch(rf"{endpoint}-\d{{14}}", name) is not None


def build_requests(config: DeployConfig, region: str, model_uri: str) -> Requests:
    """The requests that create or update the endpoint, by boto3 method, in the order in which to send them."""
    # To a hundredth of a second, since AWS accepts no more than 63 characters.
    name = f"{config.endpoint}-{datetime.datetime.now().strftime('%y%m%d%H%M%S%f')[:14]}"
    image = config.image or find_image(INFERENCE, region, config.instance_type)
    model: dict[str, Any] = {
        "ModelName": name,
        "PrimaryContainer": {"Image": image, "ModelDataUrl": model_uri, "Environment": ENVIRONMENT},
        "ExecutionRoleArn": check_role(config.role),
    }
    if config.subnets:
        model["VpcConfig"] = {"Subnets": list(config.subnets), "SecurityGroupIds": list(config.security_groups)}
    endpoint: dict[str, Any] = {"EndpointName": config.endpoint, "EndpointConfigName": name}
    if config.update and config.max_instances:
        # The present number of instances stays. Without the exception, so would the settings of the data capture.
        endpoint["RetainAllVariantProperties"] = True
        endpoint["ExcludeRetainedVariantProperties"] = [{"VariantPropertyType": "DataCaptureConfig"}]
    return {
        "create_model": model,
        "create_endpoint_config": _settings(config, name, image),
        "update_endpoint" if config.update else "create_endpoint": endpoint,
    }


def build_scaling(config: DeployConfig) -> Requests:
    """The requests that make the endpoint scale automatically; none without --max-instances."""
    if not config.max_instances:
        return {}
    return scaling_requests(config.endpoint, config.instance_count, config.max_instances, config.target_requests)


def _settings(config: DeployConfig, name: str, image: str) -> dict[str, Any]:
    """The request that creates the endpoint's configuration."""
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        "ModelName": name,
        "InstanceType": config.instance_type,
        "InitialInstanceCount": config.instance_count,
    }
    if GPU_IMAGE in image:
        variant["InferenceAmiVersion"] = GPU_MACHINE_IMAGE
    settings: dict[str, Any] = {"EndpointConfigName": name, "ProductionVariants": [variant]}
    if config.kms_key:
        settings["KmsKeyId"] = config.kms_key
    if config.capture_uri:
        settings["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": config.capture_percent,
            "DestinationS3Uri": config.capture_uri,
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            # Stored as text; everything else is stored in base64.
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        }
    return settings
