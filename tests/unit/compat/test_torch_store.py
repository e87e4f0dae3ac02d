"""The store and timeout of the default process group, with and without torch's private names."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from support.command import ROOT, free_port
from vgg_ddp.compat import torch_store


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_store_of_the_group_is_found_or_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = torch_store.default_store()
    assert store is not None
    store.set("key", "value")
    assert store.get("key") == b"value"
    torch_store.set_collective_timeout(30.0)
    assert not caplog.records
    monkeypatch.delattr(dist.distributed_c10d, "_get_default_store")
    assert [torch_store.default_store() for _ in range(2)] == [None, None]
    monkeypatch.delattr(dist, "set_timeout", raising=False)
    monkeypatch.delattr(dist.distributed_c10d, "_set_pg_timeout")
    torch_store.set_collective_timeout(30.0)
    assert [record.args for record in caplog.records] == [
        ("torch.distributed.distributed_c10d._get_default_store", "hung ranks cannot be named"),
        ("torch.distributed.distributed_c10d._set_pg_timeout", "collectives keep torch's default timeout"),
    ]


def test_collectives_are_aborted_if_torch_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(dist.ProcessGroup.abort)
    torch_store.abort_collectives()
    assert not caplog.records
    monkeypatch.delattr(dist.ProcessGroup, "abort")
    torch_store.abort_collectives()
    assert [record.args for record in caplog.records] == [
        ("torch.distributed.ProcessGroup.abort", "ranks that wait for a hung one end with their processes")
    ]


# For each host, connects twice as torchrun's processes do: to agree on the device, and for the process group. Prints on
# which addresses rank 0 listens.
RANK = """
import os, sys
import psutil
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from vgg_ddp.compat.torch_store import listen_on_master_address_only

for address in sys.argv[1:]:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address.split(":")
    listen_on_master_address_only()
    store = next(rendezvous("env://"))[0]
    store.set(f"rank {os.environ['RANK']}", "here")
    assert [store.get(f"rank {rank}") for rank in range(2)] == [b"here"] * 2
    dist.init_process_group("gloo")
    numbers = torch.ones(3)
    dist.all_reduce(numbers)
    assert numbers.tolist() == [2, 2, 2]
    listening = {one.laddr.ip for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN}
    if os.environ["RANK"] == "0":
        print(*sorted(listening))
    dist.barrier()
    dist.destroy_process_group()
    del store
"""


def test_store_listens_only_on_the_address_that_the_ranks_connect_to() -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "PYTHONPATH": str(ROOT / "ray_app"), "GLOO_SOCKET_IFNAME": "lo"}
    # A name may mean another address on other machines.
    hosts = [f"{host}:{free_port()}" for host in ("127.0.0.1", "localhost", socket.gethostname())]
    command = [sys.executable, "-c", RANK, *hosts]
    ranks = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    output = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert output[0].splitlines() == ["127.0.0.1", "127.0.0.1", "127.0.0.1 ::"]


def test_store_listens_as_usual_if_torch_changed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # torch.distributed has a function of the same name.
    monkeypatch.delattr(sys.modules["torch.distributed.rendezvous"], "TCPStore")
    torch_store.listen_on_master_address_only()
    assert [record.args for record in caplog.records] == [
        ("torch.distributed.rendezvous.TCPStore", "torch's store listens on all interfaces")
    ]
