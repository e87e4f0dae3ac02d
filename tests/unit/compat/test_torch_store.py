"""The store and timeout of the default process group, with and without torch's private names."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

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
