"""Training with DDP and SGD gives the same weights with and without TorchDynamo."""

import subprocess
import sys

from support.command import ROOT

TRAIN = """
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp.compat.torch_dynamo import SGD, no_dynamo


def train(optimizer_class):
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(3, 2))
    optimizer = optimizer_class(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    for _ in range(3):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
    return model


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with no_dynamo():
    model = train(SGD)
assert "torch._dynamo" not in sys.modules
"""

COMPARE = """
reference = train(torch.optim.SGD)
assert "torch._dynamo" in sys.modules
with no_dynamo():
    assert torch._dynamo is sys.modules["torch._dynamo"]
for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
    assert torch.equal(ours, theirs)
"""

ASK_FOR_MORE = """
with no_dynamo():
    assert not torch._dynamo.is_compiling()
    assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"
assert torch._dynamo is sys.modules["torch._dynamo"]
"""

COMPILE = """
compiled = torch.compile(model, backend="eager")
assert torch.equal(compiled(torch.ones(4, 3)), model(torch.ones(4, 3)))
assert torch._dynamo.utils.counters["frames"]["ok"] > 0
"""


CHANGED = """
from torch.optim import Optimizer

assert "torch._dynamo" not in sys.modules
# A function without attributes, as if torch had implemented it in C.
Optimizer.zero_grad = dict.clear
with no_dynamo():
    assert "_dynamo" not in vars(torch)
assert torch._dynamo is sys.modules["torch._dynamo"]
"""


def run(code: str) -> str:
    """Run a program, which must succeed; return its stderr."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "ray_app", capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_weights_equal_those_of_training_with_dynamo() -> None:
    assert "differs from the versions" not in run(TRAIN + COMPARE)


def test_dynamo_is_imported_on_demand_and_can_compile_the_model() -> None:
    run(TRAIN + ASK_FOR_MORE + COMPILE)


def test_torch_is_unchanged_if_its_internals_have_changed() -> None:
    assert run(TRAIN + CHANGED).count("differs from the versions") == 1
