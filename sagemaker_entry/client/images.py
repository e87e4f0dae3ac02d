"""SageMaker's own PyTorch images."""

from typing import Any

from vgg_ddp.flags import UsageError

# The images that SDK 3.27 lists for a torch that this program supports, newest first. GovCloud, China, and the isolated
# and sovereign regions lack the newest. All contain SageMaker's training toolkit (5.1.1) and MLflow (3.15 or later)
# with its plugin for SageMaker: https://github.com/aws/deep-learning-containers, docker/pytorch/*/uv.lock.
TRAINING = {"framework": "pytorch-amzn2023", "py_version": "py312", "image_scope": "training"}
TRAINING_VERSIONS = ("2.14", "2.13", "2.12", "2.11")
# AWS ended its patches for the PyTorch inference images, of which 2.6 is the last, in June 2026:
# https://aws.github.io/deep-learning-containers/reference/support_policy. Its Ray Serve images (this one has Ray 2.57
# and PyTorch 2.10) are supported, and exist in all regions that the SDK knows.
INFERENCE = {"framework": "ray-serve", "version": "1.4", "image_scope": "inference"}


def find_image(image: dict[str, str], region: str, instance_type: str) -> str:
    """URI of TRAINING or INFERENCE for a region and an instance type.

    Raises:
        UsageError: if the SDK lists no such image.
    """
    from sagemaker.core import image_uris

    try:
        uri: Any = image_uris.retrieve(**image, region=region, instance_type=instance_type)
    except ValueError as error:
        raise UsageError(f"no {image['image_scope']} image is known for {region} ({error}): use --image.") from error
    return str(uri)


def find_training_image(region: str, instance_type: str) -> tuple[str, str]:
    """URI and torch version of the newest training image for a region and an instance type.

    Raises:
        UsageError: if the SDK lists none.
    """
    errors = []
    for version in TRAINING_VERSIONS:
        try:
            return find_image(TRAINING | {"version": version}, region, instance_type), version
        except UsageError as error:
            errors.append(error)
    raise errors[0]
