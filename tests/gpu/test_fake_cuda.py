"""The fake CUDA itself: what it counts, graphs, collectives, and faults."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fake_cuda import counts
from support.command import started

FakeGpus = Callable[..., dict[str, str]]


@pytest.fixture
def run_on_gpu(fake_gpus: FakeGpus, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code on fake GPUs."""

    def run(code: str, gpus: int = 1, **settings: object) -> subprocess.CompletedProcess[str]:
        tests = str(Path(__file__).resolve().parents[1])
        code = f"import sys; sys.path.append({tests!r})\nimport torch\nfrom fake_cuda import counts\n{code}"
        environment = os.environ | fake_gpus(gpus, **settings)
        command = [sys.executable, "-W", "ignore", "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


RunOnGpu = Callable[..., subprocess.CompletedProcess[str]]

TRAIN = """
from torch import nn
import torch.nn.functional as F

def train(device, with_graph):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    all_images, all_labels = torch.randn(8, 4, 3, 8, 8).to(device), torch.randint(10, (8, 4)).to(device)
    images, labels = all_images[0].clone(), all_labels[0].clone()

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    for index in range(8):
        images.copy_(all_images[index])
        labels.copy_(all_labels[index])
        if not with_graph:
            step()
        elif index < 2:
            with torch.cuda.stream(stream := torch.cuda.Stream()):
                step()
        elif index == 2:
            weights = model[0].weight.detach().clone()
            with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
                step()
            assert torch.equal(weights, model[0].weight)
        if with_graph and index >= 2:
            with counts.counted() as replay:
                graph.replay()
            assert replay.launches == 1 and replay["graph"] == 1, replay
    return [value.cpu() for value in model.state_dict().values()]

plain, eager, graphed = train("cpu", False), train("cuda", False), train("cuda", True)
for values in zip(plain, eager, graphed):
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
"""

BAKED_IN = """
total, rate = torch.zeros(1, device="cuda"), 1.0
with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
    total.add_(rate)
rate = 10.0
graph.replay()
assert total.item() == 1.0
with counts.counted() as done:
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            total.item()
    except torch.AcceleratorError as error:
        assert "capture" in str(error)
    else:
        raise AssertionError
assert done.starting_with("illegal") == {"illegal during capture: cudaStreamSynchronize": 1}, done
"""

COPIES = """
pinned, on_gpu = torch.ones(8).pin_memory(), torch.empty(8, device="cuda")
waits = []
for action in (
    lambda: on_gpu.copy_(pinned, non_blocking=True),
    lambda: pinned.copy_(on_gpu, non_blocking=True),
    lambda: on_gpu.clone().add_(1),
    lambda: on_gpu.copy_(pinned),
    lambda: on_gpu.copy_(torch.ones(8), non_blocking=True),
    lambda: on_gpu.copy_(torch.ones(8)),
    lambda: on_gpu.tolist(),
    lambda: on_gpu[0].item(),
    lambda: on_gpu[on_gpu > 0],
    lambda: torch.cuda.synchronize(),
):
    with counts.counted() as done:
        action()
    waits.append(done.synchronizations)
assert waits == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1], waits
"""

RANDOM = """
torch.manual_seed(1)
first, second = torch.rand(4, device="cuda").tolist(), torch.rand(4, device="cuda").tolist()
torch.manual_seed(1)
assert first != second and torch.rand(4, device="cuda").tolist() == first
numbers = torch.zeros(4, device="cuda")
with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
    numbers.copy_(torch.rand(4, device="cuda"))
drawn = []
for _ in range(2):
    graph.replay()
    drawn.append(numbers.tolist())
assert drawn[0] != drawn[1]
"""


def test_operators_and_graphs_give_the_results_of_the_cpu_and_waits_are_counted(run_on_gpu: RunOnGpu) -> None:
    emulated = "assert not counts.current().starting_with('not emulated')"
    result = run_on_gpu("\n".join((TRAIN, BAKED_IN, COPIES, RANDOM, emulated)))
    assert result.returncode == 0, result.stderr


COLLECTIVES = """
import os, signal, time
import torch.distributed as dist

rank = int(os.environ["RANK"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl", init_method="file://" + os.path.abspath("rendezvous"), rank=rank, world_size=2)
plain = dist.new_group(backend="gloo")
for dtype in (torch.float32, torch.float64, torch.int64, torch.bfloat16):
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MIN, dist.ReduceOp.MAX):
        values = (torch.randn(100, generator=torch.Generator().manual_seed(rank)) * 10).to(dtype)
        on_gpu = values.cuda()
        dist.all_reduce(on_gpu, operation)
        if dtype != torch.bfloat16 or operation == dist.ReduceOp.SUM:
            dist.all_reduce(values, operation, group=plain)
            assert on_gpu.tolist() == values.tolist(), (dtype, operation)
large = torch.full((20_000_000,), float(rank), device="cuda")
dist.all_reduce(large)
assert large.min().item() == large.max().item() == 1
gathered = [None, None]
dist.all_gather_object(gathered, {"rank": rank})
assert gathered == [{"rank": 0}, {"rank": 1}]
said = [rank + 5]
dist.broadcast_object_list(said, src=1)
assert said == [6]
torch.cuda.synchronize()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
# The other rank is gone: a collective starts, and never ends.
work = dist.all_reduce(torch.ones(1, device="cuda"), async_op=True)
time.sleep(0.5)
assert not work.is_completed()
dist.distributed_c10d._abort_process_group()
torch.cuda.synchronize()
print("released", flush=True)
os._exit(0)
"""


def test_collectives_give_the_results_of_gloo_and_an_abort_ends_the_wait_for_a_killed_rank(
    fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    code = f"import torch\n{COLLECTIVES}"
    with ExitStack() as stack:
        command = [sys.executable, "-W", "ignore", "-c", code]
        ranks = [stack.enter_context(started(tmp_path, command, **fake_gpus(2), RANK=str(rank))) for rank in range(2)]
        outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
        assert ranks[0].returncode == 0 and "released" in outputs[0], outputs
        assert ranks[1].returncode == -signal.SIGKILL, outputs


DESCRIBE = """
import json
print(json.dumps({
    "names": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    "capability": torch.cuda.get_device_capability(),
    "memory": torch.cuda.mem_get_info(),
}))
try:
    first = torch.ones(60 << 20, dtype=torch.uint8, device="cuda").add_(1)
    torch.ones(60 << 20, dtype=torch.uint8, device="cuda")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_settings_describe_the_gpus(run_on_gpu: RunOnGpu) -> None:
    small = run_on_gpu(DESCRIBE, gpus=3, names="NVIDIA H100,NVIDIA L4", memory_mb=100)
    described, error = small.stdout.splitlines()[:2]
    assert json.loads(described) == {
        "names": ["NVIDIA H100", "NVIDIA L4", "NVIDIA L4"],
        "capability": [9, 0],
        "memory": [100 << 20, 100 << 20],
    }
    assert error.startswith("OutOfMemoryError CUDA out of memory. Tried to allocate 60.00 MiB"), small.stdout
    old = run_on_gpu(DESCRIBE, capability=7.0)
    assert "no kernel image is available for execution on the device" in old.stdout, old.stderr
    unusable = run_on_gpu("print(torch.cuda.device_count(), torch.cuda.is_available())", gpus=2, old_driver=1)
    assert unusable.stdout == "2 False\n", unusable.stderr


def test_hung_gpu_finishes_nothing_more_and_its_counts_can_be_read_after_a_kill(
    fake_gpus: FakeGpus, tmp_path: Path
) -> None:
    code = """
import torch
for _ in range(9):
    values = torch.ones(3, device="cuda")
event = torch.cuda.Event()
event.record()
assert not event.query()
print("waits", flush=True)
torch.cuda.synchronize()
print("done", flush=True)
"""
    environment = os.environ | fake_gpus(1, hang_after_launches=5, counts=tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
        assert process.stdout.read() == ""
    counted = counts.read(tmp_path)[process.pid]
    assert counted["hung"] == 1 and counted.launches == 9, counted
