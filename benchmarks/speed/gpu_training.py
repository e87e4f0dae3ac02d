"""A training run on one GPU, set up from the program's own parts without Ray, for `benchmarks.speed.gpu`."""

import copy
import tempfile
import time
from typing import Literal

import torch

from vgg_ddp.config import TrainConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.feeds.memory_feed import MemoryFeed
from vgg_ddp.job import Inputs
from vgg_ddp.machine.precision import DTYPES, choose_precision, prepare_gpu
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.ddp import load_buffers
from vgg_ddp.worker.decisions import Control
from vgg_ddp.worker.graphs import EAGER_STEPS, GraphedSteps
from vgg_ddp.worker.hangs import HangMonitor
from vgg_ddp.worker.metrics import Sums
from vgg_ddp.worker.model import prepare_model
from vgg_ddp.worker.muon import BatchedMuon, Muon
from vgg_ddp.worker.optimizers import Schedule, build_optimizers
from vgg_ddp.worker.state import TrainState, Worker
from vgg_ddp.worker.step import evaluate, train_step

Variant = Literal["eager", "graphed", "graphed, Muon per filter", "compiled", "graphed and compiled"]
DEVICE = torch.device("cuda", 0)


class Silent:
    """Takes the place of the program's telemetry, which needs Ray."""

    def mark(self, phase: str) -> None:
        """Ignore the phase."""


class Training:
    """The only rank of a run.

    Args:
        variant: how steps are taken; the program's default is "graphed".
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, variant: Variant = "graphed") -> None:
        prepare_gpu(DEVICE)
        config = config.with_batch_size(dataset.num_train, 1)
        recipe, precision = config.chosen_recipe(), choose_precision(config.precision, DEVICE)
        model = prepare_model(config, recipe, Inputs(dataset), 1).to(DEVICE)
        if "compiled" in variant:
            model.compile(dynamic=False)
        optimizers = build_optimizers(model, recipe, config.global_batch, DTYPES[precision])
        if variant == "graphed, Muon per filter":
            for optimizer in optimizers.optimizers:
                if isinstance(optimizer, BatchedMuon):
                    optimizer.step = Muon.step.__get__(optimizer)
        self.state = TrainState(model, optimizers, Sums(DEVICE))
        self._folder = tempfile.TemporaryDirectory()
        run, steps_per_epoch = Folder.at(self._folder.name), dataset.num_train // config.global_batch
        self.feed = MemoryFeed(dataset, config, 0, 1, DEVICE)
        self.worker = Worker(
            config,
            recipe,
            run,
            0,
            1,
            DEVICE,
            precision,
            model,
            self.feed,
            mean=torch.tensor(dataset.mean, device=DEVICE),
            std=torch.tensor(dataset.std, device=DEVICE),
            class_names=dataset.class_names,
            preprocessing={},
            num_evaluated={"validation": 0, "test": dataset.num_test},
            steps_per_epoch=steps_per_epoch,
            fingerprint={},
            schedule=Schedule(recipe, optimizers.peak_lrs, config.epochs * steps_per_epoch, DEVICE),
            control=Control(DEVICE, float("inf"), None, lambda: False),
            saver=Saver(run, 0),
            telemetry=Silent(),
            monitor=HangMonitor(config.collective_timeout_seconds),
        )
        self._graphs = GraphedSteps(self.worker, self.state) if variant.startswith("graphed") else None
        self._start = copy.deepcopy(self.state.snapshot())

    def restart(self) -> None:
        """Return to the first step, in the same memory, which captured graphs continue to use."""
        start = self._start["replica"]
        with torch.no_grad():
            for name, parameter in self.state.model.named_parameters():
                parameter.copy_(start["parameters"][name])
            for optimizer in self.state.optimizers.optimizers:
                # Momentum of zero gives the same first step as none.
                for kept in optimizer.state.values():
                    kept["momentum_buffer"].zero_()
        load_buffers(self.state.model, start["buffers"])
        self.state.step, self.state.rows = 0, []
        self.state.sums.restart()

    def start_epoch(self, epoch: int) -> None:
        """Prepare for the steps of an epoch."""
        self.state.step = epoch * self.worker.steps_per_epoch
        # The state counts them.
        self.state.rows = [{} for _ in range(epoch)]
        if self._graphs:
            self._graphs.start_epoch()
        else:
            self._batches = self.feed.train_batches(epoch, 0)

    def step(self) -> None:
        """Take the next step of the epoch; the loop of the program also decides about every 0.25 s."""
        if self._graphs:
            self._graphs.take_step()
        else:
            train_step(self.worker, self.state, *next(self._batches), self.state.step)
        self.state.step += 1

    def steps(self, count: int) -> None:
        """Take this many steps, over as many epochs as needed."""
        for i in range(count):
            if i % self.worker.steps_per_epoch == 0:
                self.start_epoch(i // self.worker.steps_per_epoch % self.worker.config.epochs)
            self.step()

    def warm_up(self) -> None:
        """Take the first steps, which allocate memory, choose algorithms, compile, and capture the graph."""
        self.steps(EAGER_STEPS + 2)
        evaluate(self.worker, self.state, "test")
        torch.cuda.synchronize()

    def finish(self) -> list[dict[str, float]]:
        """Train all epochs from the start; return the test accuracy and the seconds so far after each epoch."""
        self.restart()
        torch.cuda.synchronize()
        started, evaluating, rows = time.perf_counter(), 0.0, []
        for epoch in range(self.worker.config.epochs):
            self.start_epoch(epoch)
            for _ in range(self.worker.steps_per_epoch):
                self.step()
            self.state.sums.total()
            self.state.sums.restart()
            trained = time.perf_counter() - started - evaluating
            _, correct, _ = evaluate(self.worker, self.state, "test")
            evaluating = time.perf_counter() - started - trained
            rows.append(
                {"accuracy": correct / self.worker.num_evaluated["test"], "trained": trained, "evaluated": evaluating}
            )
        return rows
