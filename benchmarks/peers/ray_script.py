"""Ray Train with a DataLoader, as in https://docs.ray.io/en/latest/train/getting-started-pytorch.html."""

import os
import tempfile

import ray.train.torch
import torch
from torch.nn import CrossEntropyLoss
from torch.optim import Adam
from torch.utils.data import DataLoader

from benchmarks.peers.task import TRANSFORM, Images, current_task, start_stopwatch
from vgg_ddp.model.vgg import VGG11


def train_func() -> None:
    task = current_task()
    start_stopwatch(task)
    model = ray.train.torch.prepare_model(VGG11(task.num_classes))
    criterion = CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=0.001)
    train_loader = DataLoader(Images(task.images, TRANSFORM), batch_size=task.batch_size, shuffle=True)
    train_loader = ray.train.torch.prepare_data_loader(train_loader)
    for epoch in range(task.epochs):
        if ray.train.get_context().get_world_size() > 1:
            train_loader.sampler.set_epoch(epoch)
        for images, labels in train_loader:
            outputs = model(images)
            loss = criterion(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        metrics = {"loss": loss.item(), "epoch": epoch}
        with tempfile.TemporaryDirectory() as temp_checkpoint_dir:
            torch.save(model.module.state_dict(), os.path.join(temp_checkpoint_dir, "model.pt"))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(temp_checkpoint_dir))
        if ray.train.get_context().get_world_rank() == 0:
            print(metrics)


if __name__ == "__main__":
    task = current_task()
    trainer = ray.train.torch.TorchTrainer(
        train_func,
        scaling_config=ray.train.ScalingConfig(num_workers=task.num_workers),
        run_config=ray.train.RunConfig(storage_path=task.output),
    )
    trainer.fit()
