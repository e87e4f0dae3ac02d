"""Processes that replace a file on a network file system between any two operations of each other."""

import os
from collections import Counter
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.simulation import World
from vgg_ddp.run import versions
from vgg_ddp.run.conditional import ConflictError
from vgg_ddp.run.versions import VersionedFile

OPERATIONS = ("link", "listdir", "makedirs", "stat", "unlink")
ROUNDS = 6


class PausingOs:
    """Takes the place of the module `os`: another process may run before each operation."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)

        def operation(*arguments: Any, **more: Any) -> Any:
            self._world.pause()
            return function(*arguments, **more)

        return operation if name in OPERATIONS else function

    def path_of(self, path: str) -> Path:
        """Takes the place of the class `Path`."""
        self._world.pause()
        return Path(path)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=300))
@settings(max_examples=100, derandomize=True, database=None, deadline=None)
def test_each_version_is_replaced_once_and_readers_never_go_back(order: list[int]) -> None:
    world, turns = World(), cycle(order)
    replaced: list[str | None] = []
    newest = 0

    def replace_again_and_again(file: VersionedFile) -> None:
        nonlocal newest
        for _ in range(ROUNDS):
            known = newest
            found = file.read()
            assert int(found[1] if found else 0) >= known
            etag = found[1] if found else None
            try:
                newest = max(newest, int(file.replace(b"content", etag)))
                replaced.append(etag)
            except ConflictError:
                continue

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        pausing = PausingOs(world)
        patch.setattr(versions, "os", pausing)
        patch.setattr(versions, "Path", pausing.path_of)
        # So that versions come and go while a process waits for its turn.
        patch.setattr(versions, "KEEP", 2)
        processes = [
            world.start("process", 0, lambda: replace_again_and_again(VersionedFile(f"{folder}/file")))
            for _ in range(3)
        ]
        world.run(1.0, choose=lambda _: next(turns))
        world.close()
    assert [process.failure for process in processes] == [None] * 3
    assert replaced and not [etag for etag, times in Counter(replaced).items() if times > 1]
