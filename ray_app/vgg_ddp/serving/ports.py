"""Check that a server can listen on a port, before Ray Serve tries to."""

import socket

from vgg_ddp.flags import UsageError


def require_free_port(host: str, port: int) -> None:
    """Check that a server can listen there.

    Raises:
        UsageError: if it cannot.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UsageError(f"--host {host}: expected a name or address of this machine ({error.strerror}).") from error
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: cannot listen there ({error.strerror}).") from error


def require_free_port_on_head(host: str, port: int) -> None:
    """Check that a server can listen there on the head node of the joined cluster, where Ray Serve's proxy runs.

    Raises:
        UsageError: if it cannot.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    on_head = NodeAffinitySchedulingStrategy(head, soft=False)
    check = ray.remote(num_cpus=0)(require_free_port).options(scheduling_strategy=on_head)
    try:
        ray.get(check.remote(host, port))
    except RayTaskError as error:
        if isinstance(error.cause, UsageError):
            raise error.cause from None
        raise
