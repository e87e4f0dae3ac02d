"""The store and timeout of the default process group, and a workaround for aborts at exit. Tested with torch 2.14.1."""

import functools
import ipaddress
import socket
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch.distributed as dist

from vgg_ddp.compat.fallback import log_fallback


def _import_before_any_group() -> None:
    """Import torch.distributed.nn while no process group exists.

    The functions of that module keep the group that exists at import as a default argument, and torch.optim imports the
    module. Imported later, it would keep gloo's threads alive after the group is destroyed, and the process may abort
    at exit. No longer needed once https://github.com/pytorch/pytorch/issues/190489 is fixed.
    """
    try:
        import_module("torch.distributed.nn")
    except ImportError:
        log_fallback("torch.distributed.nn", "threads of gloo may outlive the process group")


_import_before_any_group()


def listen_on_master_address_only() -> None:
    """Make the store that rank 0 hosts listen on the address of the others' connections instead of on all interfaces.

    torch has no setting for this. No longer needed once `torch.distributed.init_process_group` binds the store to
    MASTER_ADDR.
    """
    rendezvous = import_module("torch.distributed.rendezvous")
    store: Any = getattr(rendezvous, "TCPStore", None)
    if store is None:
        log_fallback("torch.distributed.rendezvous.TCPStore", "torch's store listens on all interfaces")
    elif isinstance(store, type):
        vars(rendezvous)["TCPStore"] = functools.partial(_bound_store, store)


def _bound_store(store: Any, host_name: str, port: int, **options: Any) -> Any:
    if options.get("is_master") and (listening := _listen(host_name, port)):
        # The store closes the descriptor.
        options["master_listen_fd"] = listening.detach()
    return store(host_name, port, **options)


def _listen(host_name: str, port: int) -> socket.socket | None:
    """A listening socket, or None if the name may mean another address elsewhere or the address is not of this machine.

    A machine's own name often means 127.0.1.1 on that machine only.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host_name == "localhost" else host_name)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        return socket.create_server((str(address), port), family=family, backlog=socket.SOMAXCONN)
    except (ValueError, OSError):
        # torch then tries all interfaces, and reports what is wrong.
        return None


def default_store() -> Any:
    """The torch.distributed.Store of the default process group, or None if this version of torch does not expose it.

    No longer needed once torch has a public API for the default process group and its store, as requested in
    https://github.com/pytorch/pytorch/issues/84468 and https://github.com/pytorch/pytorch/issues/151960.
    """
    try:
        return dist.distributed_c10d._get_default_store()
    except (AttributeError, TypeError):
        log_fallback("torch.distributed.distributed_c10d._get_default_store", "hung ranks cannot be named")
        return None


def abort_collectives() -> None:
    """End the collectives of the default process group, whose ranks then get an error. Only NCCL can do that.

    No longer needed once torch documents `ProcessGroup.abort`.
    """
    abort = getattr(dist.group.WORLD, "abort", None)
    if abort is None:
        log_fallback("torch.distributed.ProcessGroup.abort", "ranks that wait for a hung one end with their processes")
    else:
        abort()


def set_collective_timeout(seconds: float) -> None:
    """Set the timeout of collectives of the default process group.

    No longer needed once torch 2.14 is the oldest supported version: its torch.distributed.set_timeout is public, see
    https://github.com/pytorch/pytorch/pull/187387.
    """
    set_timeout = getattr(dist, "set_timeout", None) or getattr(dist.distributed_c10d, "_set_pg_timeout", None)
    if set_timeout is None:
        log_fallback("torch.distributed.distributed_c10d._set_pg_timeout", "collectives keep torch's default timeout")
        return
    set_timeout(timedelta(seconds=seconds))
