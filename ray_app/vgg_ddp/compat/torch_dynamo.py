"""Use DDP and SGD without importing TorchDynamo, the front end of `torch.compile`; saves two seconds per process.

torch imports it to mark functions that must not be traced, and to check whether gradients are reduced in compiled code;
see torch/_compile.py, torch/optim/optimizer.py, and torch/nn/parallel/distributed.py. There is no setting to skip the
import. https://github.com/pytorch/pytorch/pull/162595 removed one such import elsewhere; with the same change for
optimizers and DDP, this module would not be needed. Tested with torch 2.14.1.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from vgg_ddp.compat.fallback import log_fallback

# Functions used in training that torch wraps in `torch._disable_dynamo`.
UNTRACED = (
    (DistributedDataParallel, "_inside_ddp_forward"),
    (Optimizer, "add_param_group"),
    (Optimizer, "load_state_dict"),
    (Optimizer, "state_dict"),
    (Optimizer, "zero_grad"),
)


def _plain_step() -> Callable[..., Any]:
    """SGD's step without the wrapper that imports TorchDynamo; with it, if the wrapped function has changed."""
    step: Callable[..., Any] = torch.optim.SGD.step
    plain = inspect.unwrap(step)
    if list(inspect.signature(plain).parameters) != ["self", "closure"]:
        log_fallback("torch.optim.SGD.step", "each process starts two seconds later")
        return step
    without_gradients: Callable[..., Any] = torch.no_grad()(plain)
    return without_gradients


class SGD(torch.optim.SGD):
    """torch's SGD with a step that does not import TorchDynamo. Create it within `no_dynamo`."""

    step = _plain_step()


class _Postponed:
    """Stands in for a module, which is imported on access to any attribute that is not given here."""

    def __init__(self, name: str, **attributes: object) -> None:
        self._name = name
        vars(self).update(attributes)

    def __getattr__(self, attribute: str) -> object:
        # The import must see the unmodified torch.
        _remove_postponed()
        return getattr(import_module(self._name), attribute)


@contextmanager
def no_dynamo() -> Iterator[None]:
    """DDP and optimizers that are created in this context do not import TorchDynamo, then or later.

    A process can still compile a model. Does nothing if torch's internals have changed.
    """
    if "torch._dynamo" not in sys.modules:
        try:
            _postpone()
        except Exception as error:
            _remove_postponed()
            log_fallback(f"torch._disable_dynamo ({error})", "each process starts two seconds later")
    try:
        yield
    finally:
        _remove_postponed()


def _postpone() -> None:
    for owner, name in UNTRACED:
        function = inspect.unwrap(getattr(owner, name))
        # Where torch looks for the untraced function before it imports TorchDynamo to create it.
        vars(function).setdefault("__dynamo_disable", function)
    utils = _Postponed("torch._dynamo.utils", get_optimize_ddp_mode=lambda: "no_optimization")
    # If this attribute is missing, torch imports TorchDynamo on access.
    vars(torch)["_dynamo"] = _Postponed("torch._dynamo", utils=utils)


def _remove_postponed() -> None:
    if isinstance(vars(torch).get("_dynamo"), _Postponed):
        del vars(torch)["_dynamo"]
