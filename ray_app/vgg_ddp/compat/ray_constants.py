"""Apply a setting that Ray reads only on import, after it was imported. Tested with Ray 2.60.0."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vgg_ddp.compat.fallback import log_fallback

CONSTANTS, LISTENS_ON_NETWORK = "ray._private.ray_constants", "ENABLE_RAY_CLUSTER"


@contextmanager
def restored_network_setting() -> Iterator[None]:
    """Undo `listen_on_loopback_only` after this context."""
    before = getattr(sys.modules.get(CONSTANTS), LISTENS_ON_NETWORK, None)
    try:
        yield
    finally:
        if before is not None:
            setattr(sys.modules[CONSTANTS], LISTENS_ON_NETWORK, before)


def listen_on_loopback_only() -> None:
    """Make Ray listen only on loopback, as `ray_variables.LOOPBACK_ONLY` does, if the program has imported Ray before.

    Ray has no public setting. Without it, `cluster.connect` warns that its ports can be reached from the network.
    """
    constants = sys.modules.get(CONSTANTS)
    if constants is None:
        # Ray has not been imported, and will read the variable.
        return
    if not hasattr(constants, LISTENS_ON_NETWORK):
        log_fallback(f"{CONSTANTS}.{LISTENS_ON_NETWORK}", "Ray's ports can be reached from the network")
        return
    setattr(constants, LISTENS_ON_NETWORK, False)
