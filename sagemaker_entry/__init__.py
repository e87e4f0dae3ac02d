"""SageMaker: submit.py and deploy.py run on your machine; launch.py runs in every container of a job."""

import importlib
from typing import Any

# The Python API, by module. Imported when it is used: the containers import this package, but have no SDK.
_MODULES = {
    "submit_job": "api",
    "submit_search": "api",
    "attach_job": "api",
    "attach_search": "api",
    "NotCompletedError": "client.errors",
    "WaitError": "client.errors",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
