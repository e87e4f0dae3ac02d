"""Changes to Ray Serve for which Ray has no public API. Tested with Ray 2.60.0."""

from importlib import import_module
from typing import Any

from vgg_ddp.compat.fallback import log_fallback

REPLICA = "ray.serve._private.replica"
ADD_PORT = "add_port_to_grpc_server"


def listen_on_loopback() -> None:
    """Make the replica of this process listen on loopback only; call it while the replica is constructed.

    Each replica has a server for requests of other deployments, which listens on all addresses of the machine, and for
    which Ray has no setting. It requires the cluster's token. A loopback address suffices on a cluster of one machine.
    """
    try:
        replica = import_module(REPLICA)
        add_port = getattr(replica, ADD_PORT)
    except (ImportError, AttributeError):
        log_fallback(f"{REPLICA}.{ADD_PORT}", "other machines can reach a port of the replicas")
        return

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace("[::]:", "127.0.0.1:"))

    setattr(replica, ADD_PORT, add_loopback_port)
