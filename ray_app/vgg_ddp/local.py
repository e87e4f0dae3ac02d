"""Training without a Ray cluster: in this process alone, or in each process that torchrun started."""

import logging
import os
import signal
from contextlib import nullcontext

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from vgg_ddp import torchrun
from vgg_ddp.config import TrainConfig
from vgg_ddp.flags import UsageError
from vgg_ddp.follower import Follower
from vgg_ddp.ingest import Inputs
from vgg_ddp.job import Job, Outcome
from vgg_ddp.runs import Run
from vgg_ddp.signals import SignalWatch
from vgg_ddp.train import train_loop


def choose_device(config: TrainConfig) -> bool:
    """Whether this process trains on a GPU. Checks the flags against torchrun's number of processes.

    Raises:
        UsageError: if there is no GPU for each process where GPUs are asked for.
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
        # Ray's local mode would choose NCCL by this.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return use_gpu


def train_locally(run: Run, inputs: Inputs, use_gpu: bool, phases: dict[str, float]) -> Outcome:
    """Train through Ray Train's local mode, which starts no Ray process; torchrun's processes train together."""
    if not run.config.verbose:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
    watch = SignalWatch(signal.SIGTERM)
    follower = Follower(run, phases["command"]) if torchrun.is_rank_zero() else None
    job = Job(
        run.config,
        inputs,
        run.folder if torchrun.is_rank_zero() else None,
        use_gpu,
        is_local=True,
        phases=phases,
        stop_requested=lambda: bool(watch.received),
        live_seconds=follower.live_seconds if follower else None,
    )
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu),
        run_config=RunConfig(name=run.name),
    )
    with follower or nullcontext():
        outcome: Outcome = trainer.fit().return_value
    return outcome
