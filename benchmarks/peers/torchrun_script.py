"""Plain PyTorch under torchrun, as in https://docs.pytorch.org/tutorials/beginner/ddp_series_fault_tolerance.html."""

import os

import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.nn import CrossEntropyLoss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from benchmarks.peers.task import TRANSFORM, Images, current_task, start_stopwatch
from vgg_ddp.model.vgg import VGG11


def main() -> None:
    task = current_task()
    start_stopwatch(task)
    init_process_group(backend="gloo")
    dataset = Images(task.images, TRANSFORM)
    sampler = DistributedSampler(dataset)
    train_data = DataLoader(dataset, batch_size=task.batch_size, shuffle=False, sampler=sampler)
    model = DistributedDataParallel(VGG11(task.num_classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    criterion = CrossEntropyLoss()
    for epoch in range(task.epochs):
        sampler.set_epoch(epoch)
        for source, targets in train_data:
            optimizer.zero_grad()
            loss = criterion(model(source), targets)
            loss.backward()
            optimizer.step()
        if int(os.environ["LOCAL_RANK"]) == 0:
            snapshot = {"MODEL_STATE": model.module.state_dict(), "EPOCHS_RUN": epoch}
            torch.save(snapshot, f"{task.output}/snapshot.pt")
            print(f"epoch {epoch} loss {loss.item():.4f}")
    destroy_process_group()


if __name__ == "__main__":
    main()
