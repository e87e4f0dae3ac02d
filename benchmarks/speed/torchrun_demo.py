"""The program of a typical tutorial, for comparison only: VGG11 on CIFAR-10 with torchvision, a DataLoader, and DDP.

torchrun --standalone --nproc-per-node=2 -m benchmarks.speed.torchrun_demo --batch_size 64
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import transforms
from torchvision.models import vgg11_bn

from vgg_ddp.data.dataset import load_split
from vgg_ddp.data.source import find_source

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Decoded images, augmented one by one, as with torchvision's CIFAR10."""

    def __init__(self, data: str) -> None:
        split, _ = load_split(find_source(data, "data"), "train", 32)
        self.images, self.labels = split.images, split.labels
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*augment, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=64, help="per process; default: %(default)s")
    parser.add_argument("--lr", type=float, default=0.1)
    options = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    dataset = Images(options.data)
    sampler: DistributedSampler[tuple[torch.Tensor, int]] = DistributedSampler(dataset)
    loader = DataLoader(dataset, options.batch_size, sampler=sampler, num_workers=2, drop_last=True)
    # The fully connected layers for 224 x 224 pixels make no sense at 32 x 32.
    vgg11 = nn.Sequential(vgg11_bn().features, nn.Flatten(), nn.Linear(512, 10)).to(device)
    model = DistributedDataParallel(vgg11)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        started, total = time.perf_counter(), 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        images_per_second = len(loader) * options.batch_size * dist.get_world_size() / seconds
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1} loss {total / len(loader):.4f} images/s {images_per_second:.1f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
