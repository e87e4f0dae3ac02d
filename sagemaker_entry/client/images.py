"""SageMaker's own PyTorch images."""

from typing import Any

from vgg_ddp.flags import UsageError

# The newest images that SDK 3.27 lists.
TRAINING = {"framework": "pytorch-amzn2023", "version": "2.14", "py_version": "py312", "image_scope": "training"}
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
