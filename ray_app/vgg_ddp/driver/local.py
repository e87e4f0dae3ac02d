"""Train without a Ray cluster: in this process, or in each process that torchrun started."""

import logging
import os
from contextlib import nullcontext
from dataclasses import replace

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.signals import SignalWatch, stop_signals
from vgg_ddp.flags import UsageError
from vgg_ddp.job import Inputs, Job, Outcome
from vgg_ddp.machine import torchrun
from vgg_ddp.observe.terminal import Follower
from vgg_ddp.run.runs import Run
from vgg_ddp.worker.train import train_loop


def choose_device(config: TrainConfig) -> bool:
    """Return whether this process trains on a GPU, and check the flags against torchrun's number of processes.

    Raises:
        UsageError: if --device gpu needs more GPUs than this machine has.
    """
    config.check_batch(torchrun.world_size())
    processes = torchrun.local_world_size()
    gpus = torch.cuda.device_count()
    if config.device == "gpu" and gpus < processes:
        raise UsageError(
            f"--device gpu: torch {torch.__version__} sees {gpus} GPUs for {processes} process(es) on this machine; "
            "start fewer, or use --device cpu."
        )
    use_gpu = config.device != "cpu" and gpus >= processes
    if not use_gpu:
        # Ray's local mode would choose NCCL if it saw GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return use_gpu


def train_locally(run: Run, inputs: Inputs, use_gpu: bool, phases: dict[str, float]) -> Outcome:
    """Train in Ray Train's local mode, which starts no Ray processes; torchrun's processes train together."""
    if not run.config.verbose:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
    watch = SignalWatch(*stop_signals())
    follower = Follower(run, phases["command"]) if torchrun.is_rank_zero() else None
    job = Job(
        run.config,
        inputs,
        run.folder if torchrun.is_rank_zero() else None,
        use_gpu,
        is_local=True,
        phases=phases,
        stop_requested=lambda: bool(watch.received),
    )
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu),
        run_config=RunConfig(name=run.name),
    )
    with follower or nullcontext():
        outcome: Outcome = trainer.fit().return_value
    # Under torchrun, the signal may have reached another process.
    return replace(outcome, signal_number=watch.received[0]) if watch.received else outcome
