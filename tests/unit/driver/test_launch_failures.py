"""The reasons in the log of Ray's autoscaler."""

from vgg_ddp.driver.launch_failures import reasons

LOG = """2026-11-30 10:00:00,001\tINFO node_provider.py:485 -- Launching 2 nodes of type g6_spot.
2026-11-30 10:00:01,002\tINFO node_provider.py:491 -- Failed to launch 2 nodes of type g6_spot: Node Launch Exception \
(InsufficientInstanceCapacity): We currently do not have sufficient g6.xlarge capacity.
2026-11-30 10:00:02,003\tINFO node_provider.py:491 -- Failed to launch 1 nodes of type g5_spot: no credentials
"""


def test_reason_is_the_node_type_and_what_the_cloud_said() -> None:
    assert list(reasons(LOG).values()) == [
        "g6_spot: InsufficientInstanceCapacity: We currently do not have sufficient g6.xlarge capacity.",
        "g5_spot: no credentials",
    ]
