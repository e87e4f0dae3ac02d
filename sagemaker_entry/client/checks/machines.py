"""Whether the machines of a job or an endpoint can run it, checked before they are paid for."""

import dataclasses
import re

from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError, flag

ARM = r"ml\.(a1|[a-z]+\d+g[a-z]*|p6e-gb\d+)\."
ACCELERATOR = r"ml\.(trn|inf)\d"
# Compute capability 3.7 to 7.0. torch's builds for CUDA 13 contain kernels for 7.5 and later.
OLD_GPU = r"ml\.(p2|p3|p3dn|g3|g3s)\."
GPU = r"ml\.[gp]\d"


def check_machine(name: str, instance_type: str, has_own_image: bool, computes: bool = True) -> None:
    """Check that a machine can run the image and, if it trains or predicts, torch.

    Args:
        name: the setting with the instance type.
        instance_type: such as ml.g5.xlarge.
        has_own_image: whether --image is given; it may contain a torch for other GPUs.
        computes: False for the coordinator.

    Raises:
        UsageError: with the reason, if it cannot.
    """
    reason = ""
    if re.match(ARM, instance_type):
        reason = "its processor is ARM, and SageMaker's PyTorch images are for x86"
    elif computes and re.match(ACCELERATOR, instance_type):
        reason = "this program uses NVIDIA GPUs or CPUs, not AWS Trainium or Inferentia"
    elif computes and not has_own_image and re.match(OLD_GPU, instance_type):
        reason = (
            "its GPUs have a compute capability below 7.5, which torch in SageMaker's images does not support; use "
            "ml.g4dn, ml.g5 or newer, or --image with a torch that supports them"
        )
    if reason:
        raise UsageError(f"{flag(name)} {instance_type}: {reason}.")


def count_gpus(instance_type: str, region: str) -> int | None:
    """GPUs of one machine; None if the SDK's table lacks the type.

    The table (SDK 3.27) has the types up to ml.g5 and ml.p5, for 30 regions.
    """
    if not re.match(GPU, instance_type):
        return 0
    from sagemaker.core import instance_types_gpu_info

    try:
        table = instance_types_gpu_info.retrieve(region) or instance_types_gpu_info.retrieve("us-east-1")
    except ValueError:
        return None
    count = table.get(instance_type, {}).get("Count")
    return int(count) if count else None


def check_batches(config: TrainConfig, instance_type: str, instance_count: int, region: str) -> None:
    """Check that every global batch splits over the workers that the job will have: one per GPU, or one per machine.

    Raises:
        UsageError: if one does not, as far as the number of workers is known.
    """
    gpus = count_gpus(instance_type, region)
    if gpus is None or config.num_workers is not None or config.min_workers is not None or config.resume:
        return
    workers = instance_count * (gpus or 1)
    try:
        dataclasses.replace(config, num_workers=workers)
    except UsageError as error:
        raise UsageError(f"{error} ({instance_count} x {instance_type} train with {workers} workers.)") from error


def have_local_disks(*instance_types: str | None) -> bool:
    """Whether all machines have local disks. Their hardware encrypts these, and SageMaker rejects a key for them."""
    from sagemaker.core.common_utils import instance_supports_kms

    return not any(instance_supports_kms(instance_type) for instance_type in instance_types if instance_type)
