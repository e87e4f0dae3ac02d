from sagemaker_entry.container.entry import LOOPBACK_ONLY
from vgg_ddp.compat import ray_variables


def test_container_uses_the_variable_that_is_checked_against_ray() -> None:
    assert LOOPBACK_ONLY == ray_variables.LOOPBACK_ONLY
