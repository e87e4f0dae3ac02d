"""DDP and SGD without an import of TorchDynamo, the front end of `torch.compile`: two seconds of each process.

torch imports it there to say what must not be traced, or to ask whether gradients are reduced in compiled code; see
torch/_compile.py, torch/optim/optimizer.py and torch/nn/parallel/distributed.py.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

# What training calls of what torch wraps by `torch._disable_dynamo`.
UNTRACED = (
    (DistributedDataParallel, "_inside_ddp_forward"),
    (Optimizer, "add_param_group"),
    (Optimizer, "load_state_dict"),
    (Optimizer, "state_dict"),
    (Optimizer, "zero_grad"),
)


class SGD(torch.optim.SGD):
    """torch's SGD, whose step does not tell TorchDynamo to leave it alone. To be made within `no_dynamo`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _Postponed:
    """A module that is imported when it is asked for more than it answers here."""

    def __init__(self, name: str, **answers: object) -> None:
        self._name = name
        vars(self).update(answers)

    def __getattr__(self, attribute: str) -> object:
        return getattr(import_module(self._name), attribute)


@contextmanager
def no_dynamo() -> Iterator[None]:
    """Within this context, and for what was made there, DDP and the optimizers do not import TorchDynamo.

    Meant for processes that compile neither: whoever compiles their model can still do so.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    for owner, name in UNTRACED:
        # A version of torch may have others: there it takes its time.
        if wrapped := getattr(owner, name, None):
            function = inspect.unwrap(wrapped)
            # Where torch looks for the function that is not traced, before it imports TorchDynamo to make one.
            vars(function).setdefault("__dynamo_disable", function)
    utils = _Postponed("torch._dynamo.utils", get_optimize_ddp_mode=lambda: "no_optimization")
    # torch imports it when it is asked for an attribute of this name that it does not have.
    vars(torch)["_dynamo"] = postponed = _Postponed("torch._dynamo", utils=utils)
    try:
        yield
    finally:
        if vars(torch)["_dynamo"] is postponed:
            del vars(torch)["_dynamo"]
