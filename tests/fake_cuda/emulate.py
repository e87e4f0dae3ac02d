"""Compute the operators of the fake CUDA on the CPU, on the same memory.

torch's own operator runs first: it checks its arguments, allocates its outputs, and launches kernels that compute
nothing. Then the same operator for the CPU computes its result into that memory. Copies and collectives need no help:
the fake CUDA moves their data itself.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# The symbols that were loaded before the program started.
LIBRARY = ctypes.CDLL(None)
# Operators that compute nothing: they allocate memory, or only describe it; or read a value, which is a copy.
WITHOUT_COMPUTATION = (
    *("aten::empty", "aten::new_empty", "aten::set_", "aten::resize_", "aten::record_stream"),
    *("aten::is_pinned", "aten::pin_memory", "aten::_pin_memory", "aten::_local_scalar_dense"),
)


@dataclass
class Operation:
    """An operator to compute, with arguments on the CPU that share the memory of those on the GPU.

    Attributes:
        seed: for random numbers; None if the operator draws none.
    """

    operator: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Any]
    seed: int | None

    def compute(self) -> Any:
        """Compute the outputs; the result has the operator's own form."""
        with random_numbers(self.seed):
            results = FOR_THE_CPU.get(self.operator, self.operator)(*self.args, **self.kwargs)
        for output, result in zip(self.outputs, tree_leaves(results), strict=False):
            if isinstance(output, Tensor) and isinstance(result, Tensor):
                self._store(output, result)
        return results

    def _store(self, output: Tensor, result: Tensor) -> None:
        if not result.numel():
            # Results that nothing uses, such as the statistics of a batch during evaluation, are empty on the CPU.
            return
        if result.shape != output.shape:
            raise NotImplementedError(
                f"{self.operator}: {tuple(output.shape)} on the fake GPU, {tuple(result.shape)} on the CPU"
            )
        if result.data_ptr() != output.data_ptr():
            output.copy_(result)


class Emulation(TorchDispatchMode):
    """Computes every operator on GPU tensors that the calling thread, or its backward pass, runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise, torch imports its compiler in every process.
        return False

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_emulated(func, args, kwargs):
            return func(*args, **kwargs)
        if depends_on_data(func, args):
            # On a GPU, such an operator waits for the number of its results.
            torch.cuda.current_stream().synchronize()
            results = func(*on_cpu(args), **on_cpu(kwargs))
            return args[0] if func._schema.is_mutable else tree_map(to_gpu, results)
        seed = draw_seed(args, kwargs) if torch.Tag.nondeterministic_seeded in func.tags else None
        LIBRARY.fake_cuda_enter()
        try:
            on_gpu = func(*args, **kwargs)
        finally:
            LIBRARY.fake_cuda_leave()
        outputs = tree_leaves(on_cpu(on_gpu))
        if torch.cuda.is_current_stream_capturing():
            CAPTURED.append(Operation(func, *frozen(func, on_cpu((args, kwargs))), outputs, seed))
            return on_gpu
        results = Operation(func, on_cpu(args), on_cpu(kwargs), outputs, seed).compute()
        # A number or a bool that depends on the data.
        return on_gpu if any(isinstance(leaf, Tensor) for leaf in outputs) else results


def is_emulated(func: OpOverload, args: object, kwargs: dict[str, Any]) -> bool:
    """Whether an operator computes something on a GPU."""
    name = func._schema.name
    if func.is_view or not name.startswith("aten::") or name.startswith(WITHOUT_COMPUTATION):
        return False
    return any(
        leaf.is_cuda if isinstance(leaf, Tensor) else isinstance(leaf, torch.device) and leaf.type == "cuda"
        for leaf in tree_leaves((args, kwargs))
    )


def depends_on_data(func: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether the shapes that an operator works with depend on values: nonzero, or indexing with a mask."""
    if "index" in func._schema.name:
        indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
        return any(index.dtype in (torch.bool, torch.uint8) for index in indices if index is not None)
    return torch.Tag.dynamic_output_shape in func.tags


def on_cpu(values: Any) -> Any:
    """The same values, with each tensor on a GPU replaced by one on the CPU that shares its memory."""
    return tree_map(_on_cpu, values)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, torch.Generator):
        # `random_numbers` replaces it.
        return None
    if not isinstance(value, Tensor) or not value.is_cuda:
        return value
    shared = storage_at(value.untyped_storage().data_ptr(), value.untyped_storage().nbytes())
    return torch.empty(0, dtype=value.dtype).set_(shared, value.storage_offset(), value.size(), value.stride())


def to_gpu(value: Any) -> Any:
    """A copy of a result on the GPU."""
    if not isinstance(value, Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    on_cpu(copy).copy_(value)
    return copy


STORAGES: dict[tuple[int, int], torch.UntypedStorage] = {}


def storage_at(address: int, size_bytes: int) -> torch.UntypedStorage:
    """Memory at an address, as a storage that does not own it."""
    if size_bytes == 0:
        return torch.UntypedStorage(0)
    if len(STORAGES) > 10_000:
        STORAGES.clear()
    key = (address, size_bytes)
    if key not in STORAGES:
        memory = (ctypes.c_char * size_bytes).from_address(address)
        STORAGES[key] = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return STORAGES[key]


def draw_seed(args: object, kwargs: dict[str, Any]) -> int:
    """A seed that depends on the state of the GPU's generator, which the operator then advances."""
    generators = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
    generator = generators[0] if generators else torch.cuda.default_generators[torch.cuda.current_device()]
    if torch.cuda.is_current_stream_capturing():
        # Each operator of a graph draws other numbers, and other ones each time: see `replay`.
        return len(CAPTURED)
    return hash((generator.initial_seed(), generator.get_offset()))


@contextmanager
def random_numbers(seed: int | None) -> Iterator[None]:
    """Draw random numbers from this seed, and leave the CPU's generator as it was."""
    if seed is None:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    yield
    torch.default_generator.set_state(before)


# Graphs. During capture, operators are recorded in `CAPTURED`, and nothing is computed. A replay computes them in the
# same order on the same memory, which the graph keeps.
CAPTURED: list[Operation] = []


def frozen(func: OpOverload, arguments: Any) -> Any:
    """The arguments as a graph keeps them: a kernel gets the present value of a number on the host.

    A copy, however, reads the host's memory each time.
    """
    if func._schema.name in ("aten::copy_", "aten::_to_copy"):
        return arguments
    return tree_map(
        lambda value: (
            value.clone() if isinstance(value, Tensor) and value.dim() == 0 and not is_shared(value) else value
        ),
        arguments,
    )


def is_shared(tensor: Tensor) -> bool:
    """Whether a CPU tensor is the memory of a GPU."""
    storage = tensor.untyped_storage()
    return (storage.data_ptr(), storage.nbytes()) in STORAGES


def emulate_graphs() -> None:
    """Make torch's graphs record and compute their operators."""
    graph = torch.cuda.CUDAGraph
    begin, end, replay_on_gpu = graph.capture_begin, graph.capture_end, graph.replay

    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        CAPTURED.clear()
        begin(self, *args, **kwargs)

    def capture_end(self: Any) -> None:
        end(self)
        self.captured = CAPTURED.copy()
        CAPTURED.clear()

    def replay(self: Any) -> None:
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = (generator.initial_seed(), generator.get_offset())
        replay_on_gpu(self)
        for operation in self.captured:
            index, operation.seed = (
                operation.seed,
                hash((state, operation.seed)) if operation.seed is not None else None,
            )
            operation.compute()
            operation.seed = index

    graph.capture_begin, graph.capture_end, graph.replay = capture_begin, capture_end, replay


def cudnn_batch_norm(
    images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    """The CPU's batch normalization. cuDNN's returns a fourth tensor, for its own backward pass."""
    return aten.native_batch_norm(images, weight, bias, mean, variance, *options)


def cudnn_batch_norm_backward(
    images: Tensor,
    grad: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    saved_mean: Tensor,
    saved_variance: Tensor,
    epsilon: float,
    _reserve: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of the CPU's batch normalization."""
    saved = (mean, variance, saved_mean, saved_variance)
    return aten.native_batch_norm_backward(grad, images, weight, *saved, True, epsilon, [True, True, True])


# Operators that exist only on a GPU.
FOR_THE_CPU: dict[OpOverload, Callable[..., Any]] = {
    aten.cudnn_batch_norm.default: cudnn_batch_norm,
    aten.cudnn_batch_norm_backward.default: cudnn_batch_norm_backward,
}


def start() -> None:
    """Emulate in this thread, and in all threads that start from now on. Backward passes inherit it."""
    emulate_graphs()
    Emulation().__enter__()
    start_thread = threading.Thread.start

    def start_emulated(thread: threading.Thread) -> None:
        run = thread.run

        def run_emulated() -> None:
            Emulation().__enter__()
            run()

        thread.run = run_emulated  # type: ignore[method-assign]
        start_thread(thread)

    threading.Thread.start = start_emulated  # type: ignore[method-assign]
