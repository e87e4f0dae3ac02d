"""Python runs this when it starts: on the fake CUDA, compute operators from when torch is imported."""

import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class EmulateAfterImport(MetaPathFinder):
    """Starts the emulation right after torch has been imported."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and isinstance(spec.loader, Loader):
            execute = spec.loader.exec_module

            def execute_and_emulate(module: ModuleType) -> None:
                execute(module)
                from fake_cuda import emulate

                emulate.start()

            spec.loader.exec_module = execute_and_emulate  # type: ignore[method-assign]
        return spec


if os.environ.get("FAKE_CUDA_EMULATE") == "1":
    # Last, so that no module there replaces another one.
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.meta_path.insert(0, EmulateAfterImport())
