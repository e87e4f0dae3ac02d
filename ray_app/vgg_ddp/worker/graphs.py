"""CUDA graphs: take a step with one launch. Several hundred launches would take longer than the GPU's work.

The loop works the same without them (`--graphs off`). A graph replays the operations of `step.py` that were captured,
on the same memory. Nothing in it may come from the host, so it reads the step's number, the epoch's plan, and the
learning rates from the GPU's memory.

See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from vgg_ddp.feeds.memory_feed import MemoryFeed
from vgg_ddp.run.notes import print_note, reason
from vgg_ddp.worker.ddp import from_all_ranks
from vgg_ddp.worker.state import TrainState, Worker
from vgg_ddp.worker.step import forward_backward, train_step, update

# The first steps allocate memory, and libraries choose their algorithms in them.
EAGER_STEPS = 3


class GraphedSteps:
    """The steps of one rank, whose images are in its GPU's memory.

    With several ranks, gradients are averaged between two graphs, all in one collective; DDP is not used. After
    `EAGER_STEPS` steps without a graph, and again when the image size changes, the next step is captured.
    """

    def __init__(self, worker: Worker, state: TrainState) -> None:
        assert isinstance(worker.feed, MemoryFeed)
        self._worker, self._state, self._feed = worker, state, worker.feed
        self._step = torch.zeros((), dtype=torch.int64, device=worker.device)
        part = worker.feed.rank_part
        self._positions = torch.arange(part.start, part.stop, device=worker.device)
        self._gradients = _FlatGradients(worker, state) if worker.world_size > 1 else None
        self._parts: list[Callable[[], None]] = []
        self._eager_steps, self._is_halved = EAGER_STEPS, False
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None

    def start_epoch(self) -> None:
        """Prepare for the steps of the state's epoch, from the state's step on."""
        self._feed.start_epoch(self._state.epoch)
        self._step.fill_(self._state.step)
        is_halved = self._state.epoch < self._worker.config.half_size_epochs
        if is_halved != self._is_halved:
            self._parts, self._eager_steps, self._is_halved = [], EAGER_STEPS, is_halved

    def take_step(self) -> None:
        """Take the next step of the epoch."""
        if self._eager_steps > 0:
            self._eager_steps -= 1
            for part in self._stages():
                part()
            return
        if not self._parts:
            self._parts = self._capture()
        for part in self._parts:
            part()
        self._worker.telemetry.mark("compute")

    def _stages(self) -> list[Callable[[], None]]:
        """A step in parts; every second one is a collective, which stays outside of the graphs."""
        if self._gradients is None:
            return [self._whole_step]
        return [self._compute_gradients, self._gradients.reduce, self._update]

    def _whole_step(self) -> None:
        train_step(self._worker, self._state, *self._next_batch(), self._step)
        self._step += 1

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """This rank's images and labels of the step that the number on the device says."""
        assert self._feed.plan is not None
        worker = self._worker
        start = torch.remainder(self._step, worker.steps_per_epoch) * worker.config.global_batch
        return self._feed.batch(self._feed.plan.order.index_select(0, self._positions + start))

    def _compute_gradients(self) -> None:
        assert self._gradients is not None
        images, labels = self._next_batch()
        self._gradients.attach()
        loss_sum, logits = forward_backward(self._worker, self._state, self._state.model, images, labels)
        self._gradients.pack()
        self._batch = (loss_sum, logits, labels)

    def _update(self) -> None:
        assert self._gradients is not None and self._batch is not None
        self._gradients.unpack()
        update(self._worker, self._state, self._step, *self._batch)
        self._step += 1

    def _capture(self) -> list[Callable[[], None]]:
        """Capture the parts of a step, without taking it; the parts themselves if that fails on any rank."""
        stages, failure = self._stages(), None
        parts = list(stages)
        pool = torch.cuda.graph_pool_handle()
        try:
            for i in range(0, len(stages), 2):
                graph = torch.cuda.CUDAGraph()
                # NCCL's threads make calls that would invalidate a capture in the default mode.
                with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
                    stages[i]()
                parts[i] = graph.replay
        except RuntimeError as error:
            # The end of a failed capture raises an error of its own, whose context is the first one.
            failure = reason(error.__context__ or error)
            self._state.optimizers.zero_grad()
            # The generator is left in the state of a capture, in which dropout fails.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
        failure = next(filter(None, from_all_ranks(failure)), None)
        if failure and self._worker.rank == 0:
            print_note(f"the step cannot be captured in a CUDA graph, and runs without: {failure}")
        return stages if failure else parts


class _FlatGradients:
    """The gradients of all parameters as views of one buffer, averaged over the ranks in one collective."""

    def __init__(self, worker: Worker, state: TrainState) -> None:
        self._parameters = [weight for weight in state.model.parameters() if weight.requires_grad]
        sizes = [weight.numel() for weight in self._parameters]
        self._flat = torch.zeros(sum(sizes), device=worker.device)
        self._views = [
            part.as_strided(weight.shape, weight.stride(), part.storage_offset())
            for weight, part in zip(self._parameters, self._flat.split(sizes), strict=True)
        ]
        # As DDP's hook does for --gradients bf16.
        self._sent = self._flat.bfloat16() if worker.config.gradients == "bf16" else self._flat
        self._world_size = worker.world_size

    def attach(self) -> None:
        """Set all gradients to zero, in the buffer."""
        self._flat.zero_()
        for weight, view in zip(self._parameters, self._views, strict=True):
            weight.grad = view

    def pack(self) -> None:
        """Prepare the buffer that is sent."""
        if self._sent is not self._flat:
            self._sent.copy_(self._flat)
        self._sent.div_(self._world_size)

    def reduce(self) -> None:
        """Sum the buffers of all ranks. A collective."""
        dist.all_reduce(self._sent)

    def unpack(self) -> None:
        """Take over what was received."""
        if self._sent is not self._flat:
            self._flat.copy_(self._sent)
