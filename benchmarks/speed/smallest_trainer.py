"""The smallest possible TorchTrainer script, for comparison in startup.py.

python benchmarks/speed/smallest_trainer.py NUM_WORKERS STORAGE_FOLDER
"""

import os
import sys
import time

import ray
import ray.train.torch
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_loop(_: dict[str, float]) -> None:
    model = ray.train.torch.prepare_model(torch.nn.Linear(10, 10))
    model(torch.randn(8, 10)).sum().backward()
    print(f"FIRST_STEP {time.time()}", flush=True)


if __name__ == "__main__":
    num_workers = int(sys.argv[1])
    ray.init(address="local")
    cpu_share = min(1.0, (os.cpu_count() or 1) / num_workers)
    TorchTrainer(
        train_loop,
        train_loop_config={"unused": 0.0},
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": cpu_share}),
        run_config=RunConfig(storage_path=os.path.abspath(sys.argv[2])),
    ).fit()
