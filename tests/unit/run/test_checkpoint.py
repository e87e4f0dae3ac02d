"""Checkpoints: damaged ones are rejected, the newest intact one is found, old ones are kept until a new one is."""

import errno
import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import DamagedCheckpointError, State
from vgg_ddp.run.storage import Folder


def make_state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "step": step,
        "seconds": 1.5,
        "rows": [{"epoch": 1.0, "loss": 0.25}],
        "precision": "bf16",
        "sums": [1.0, 2.0, 3.0],
        "fingerprint": {"training_images": 9, "class_names": ["ant", "bee"]},
        "replica": {
            "parameters": {"weight": weight, "half": weight.bfloat16(), "filters": weight.view(1, 3, 2, 2)},
            "buffers": [torch.arange(5, dtype=torch.float64), torch.tensor(7)],
            "optimizer": {"state": {0: {"momentum_buffer": weight * 2}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        },
    }


def save(run: Folder, step: int) -> str:
    name = checkpoint.new_name(step)
    checkpoint.write(run, name, make_state(step))
    return name


def file_of(run: Folder, name: str, file: str) -> Path:
    return Path((run / name / file).path)


def assert_same(first: Any, second: Any) -> None:
    """Compare nested values; tensors bit for bit, including dtype and shape."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, list):
        for item, other in zip(first, second, strict=True):
            assert_same(item, other)
    else:
        assert first == second


def test_state_is_read_as_written(run: Folder) -> None:
    name = save(run, 12)
    assert_same(checkpoint.read(run, name), make_state(12))
    found = checkpoint.read_newest(run)
    assert found is not None
    assert found[0] == name
    assert_same(found[1], make_state(12))


def test_manifest_names_step_and_size(run: Folder) -> None:
    name = save(run, 12)
    manifest = json.loads(file_of(run, name, "manifest.json").read_bytes())
    assert manifest["step"] == 12
    assert manifest["size_bytes"] == file_of(run, name, "state.pt").stat().st_size


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 1.0])
def test_every_truncation_is_detected(run: Folder, file: str, share: float) -> None:
    name = save(run, 1)
    path = file_of(run, name, file)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * (len(content) - 1))])
    with pytest.raises(DamagedCheckpointError, match=name):
        checkpoint.read(run, name)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_flipped_bit_of_the_state_is_detected(run: Folder, share: float) -> None:
    name = save(run, 1)
    path = file_of(run, name, "state.pt")
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="SHA-256"):
        checkpoint.read(run, name)


def test_flipped_byte_of_the_manifest_never_changes_the_state(run: Folder) -> None:
    name = save(run, 1)
    path = file_of(run, name, "manifest.json")
    content = path.read_bytes()
    noticed = 0
    for offset in range(len(content)):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :])
        try:
            assert_same(checkpoint.read(run, name), make_state(1))
        except DamagedCheckpointError:
            noticed += 1
    # The digest alone has 64 characters.
    assert noticed > 64


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_missing_file_is_detected(run: Folder, file: str) -> None:
    name = save(run, 1)
    file_of(run, name, file).unlink()
    with pytest.raises(DamagedCheckpointError, match="incomplete"):
        checkpoint.read(run, name)


def test_damaged_checkpoint_falls_back_to_the_previous_one(run: Folder, caplog: pytest.LogCaptureFixture) -> None:
    whole, damaged = save(run, 1), save(run, 2)
    file_of(run, damaged, "state.pt").write_bytes(b"cut")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.read_newest(run)
    assert found is not None
    assert found[0] == whole
    assert_same(found[1], make_state(1))
    assert run.names() == [whole]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"checkpoint {damaged} is damaged" in caplog.text


def test_peek_finds_the_newest_intact_checkpoint_and_changes_nothing(run: Folder) -> None:
    whole, damaged = save(run, 1), save(run, 2)
    file_of(run, damaged, "state.pt").write_bytes(b"cut")
    found = checkpoint.peek_newest(run)
    assert list(found) == [whole]
    assert_same(found[whole], make_state(1))
    assert run.names() == [whole, damaged]


def test_peek_finds_nothing_if_the_storage_cannot_be_read(run: Folder) -> None:
    name = save(run, 1)
    file_of(run, name, "state.pt").unlink()
    file_of(run, name, "state.pt").mkdir()
    with pytest.raises(OSError, match="is a directory"):
        checkpoint.read(run, name)
    assert checkpoint.peek_newest(run) == {}


def test_run_without_an_intact_checkpoint_has_none(run: Folder) -> None:
    assert checkpoint.read_newest(run) is None
    file_of(run, save(run, 1), "manifest.json").unlink()
    assert checkpoint.read_newest(run) is None


def test_only_the_two_newest_are_kept(run: Folder) -> None:
    names = [save(run, step) for step in (5, 50, 500, 5000)]
    assert run.names() == sorted(names[2:])
    assert checkpoint.list_names(run) == [names[3], names[2]]


def test_incomplete_checkpoint_does_not_take_the_place_of_a_complete_one(run: Folder) -> None:
    # As if a command that was replaced had created it late.
    (run / checkpoint.new_name(9)).write("state.pt", b"")
    names = [save(run, step) for step in (1, 2)]
    assert run.names() == sorted(names)


def test_resume_deletes_what_a_killed_command_had_no_time_to_delete(run: Folder) -> None:
    names = [save(run, step) for step in (3, 4)]
    for step in (1, 2):
        (run / checkpoint.new_name(step)).write("manifest.json", b"{}")
    run.write("metrics.csv.0123abcd.tmp", b"")
    found = checkpoint.read_newest(run)
    assert found and found[0] == names[1]
    checkpoint.delete_leftovers(run)
    assert run.names() == sorted(names)


def test_files_that_cannot_be_deleted_do_not_prevent_a_resume(
    run: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [save(run, step) for step in (1, 2)]
    file_of(run, names[1], "state.pt").write_bytes(b"cut")
    (run / checkpoint.new_name(3)).write("state.pt", b"")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(Folder, "delete", fail)
    found = checkpoint.read_newest(run)
    assert found and found[0] == names[0]
    checkpoint.delete_leftovers(run)
    assert caplog.text.count("could not be deleted: [Errno 39] Directory not empty") == 3


def test_other_files_of_the_run_are_not_checkpoints(run: Folder) -> None:
    run.write("metrics.csv", b"")
    (run / "checkpoint_old").write("note", b"")
    names = [save(run, step) for step in (1, 2, 3)]
    assert checkpoint.list_names(run) == [names[2], names[1]]
    assert run.exists("metrics.csv")
    assert run.exists("checkpoint_old")


def test_failed_write_leaves_older_checkpoints(run: Folder) -> None:
    older = [save(run, step) for step in (1, 2)]
    blocked = checkpoint.new_name(3)
    run.write(blocked, b"a file where the folder should be")
    with pytest.raises(OSError):
        checkpoint.write(run, blocked, make_state(3))
    for step, name in enumerate(older, start=1):
        assert_same(checkpoint.read(run, name), make_state(step))


def test_names_differ_and_sort_by_step() -> None:
    assert len({checkpoint.new_name(1) for _ in range(20)}) == 20
    names = [checkpoint.new_name(step) for step in (9, 10, 99, 100_000, 12_345_678)]
    assert names == sorted(names)
    assert re.fullmatch(r"checkpoint_00000009_[0-9a-f]{6}", names[0])


def test_copy_does_not_change_when_training_continues(run: Folder) -> None:
    state = make_state(1)
    snapshot = checkpoint.copy_to_host(state)
    for tensor in (
        state["replica"]["parameters"]["weight"],
        state["replica"]["buffers"][0],
        state["replica"]["optimizer"]["state"][0]["momentum_buffer"],
    ):
        tensor.add_(1.0)
    state["rows"].append({"epoch": 2.0})
    assert_same(snapshot, make_state(1))
    name = checkpoint.new_name(1)
    checkpoint.write(run, name, snapshot)
    assert_same(checkpoint.read(run, name), make_state(1))


def test_damage_can_be_reported_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(DamagedCheckpointError("checkpoint_00000001_abcdef", "incomplete")))
    assert str(error) == "checkpoint checkpoint_00000001_abcdef is damaged (incomplete)"
