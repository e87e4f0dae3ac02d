"""Train without a Ray cluster: in this process, or in each process that torchrun started."""

import json
import logging
import os
from contextlib import nullcontext
from dataclasses import replace

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from vgg_ddp.compat.ray_train import hidden_gpus
from vgg_ddp.compat.torch_store import listen_on_master_address_only
from vgg_ddp.config import TrainConfig
from vgg_ddp.driver.attempt import Attempt
from vgg_ddp.driver.signals import SignalWatch, stop_signals
from vgg_ddp.job import Inputs, Job, Outcome
from vgg_ddp.machine import torchrun
from vgg_ddp.machine.gpus import fall_back, find_gpus
from vgg_ddp.machine.loopback import GLOO_ON_LOOPBACK
from vgg_ddp.observe.terminal import Follower
from vgg_ddp.worker.train import train_loop


def choose_device(config: TrainConfig) -> bool:
    """Return whether all processes train on GPUs, and check the flags against torchrun's number of processes.

    Torchrun's processes agree on it, because the machines may differ.

    Raises:
        UsageError: the same in all processes, if --device gpu requires GPUs that one of them cannot use.
    """
    config.check_batch(torchrun.world_size())
    if torchrun.world_size() > 1:
        # Before torch connects the processes.
        listen_on_master_address_only()
        if torchrun.world_size() == torchrun.local_world_size():
            os.environ |= GLOO_ON_LOOPBACK | os.environ
    if config.device != "cpu":
        own = find_gpus(torchrun.local_world_size())
        found = [json.loads(gpus) for gpus in torchrun.gather("gpus", json.dumps([own.count, own.problem]))]
        problems = [problem for _, problem in found if problem]
        if not problems:
            return True
        # Nobody expects GPUs on machines without any: no note.
        is_announced = torchrun.is_rank_zero() and any(count for count, _ in found)
        fall_back(config.device, problems[0], is_announced)
    return False


def train_locally(attempt: Attempt, inputs: Inputs, use_gpu: bool) -> Outcome:
    """Train in Ray Train's local mode, which starts no Ray processes; torchrun's processes train together."""
    run, is_first = attempt.run, torchrun.is_rank_zero()
    if not run.config.verbose:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
    watch = SignalWatch(*stop_signals())
    follower = Follower(run, attempt.phases["command"], attempt.show_bar) if is_first else None
    job = Job(
        run.config,
        inputs,
        run.folder if is_first else None,
        use_gpu,
        is_local=True,
        phases=attempt.phases,
        stop_requested=lambda: bool(watch.received),
        # In this mode, Ray does not call callbacks.
        callbacks=attempt.callbacks,
    )
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=use_gpu),
        run_config=RunConfig(name=run.name),
    )
    with follower or nullcontext(), nullcontext() if use_gpu else hidden_gpus():
        outcome: Outcome = trainer.fit().return_value
    # Under torchrun, the signal may have reached another process.
    return replace(outcome, signal_number=watch.received[0]) if watch.received else outcome
