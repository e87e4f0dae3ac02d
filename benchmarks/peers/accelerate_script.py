"""Accelerate, as in https://huggingface.co/docs/accelerate/basic_tutorials/migration.

`cpu=True`, as in its examples/cv_example.py, makes the processes of `accelerate launch` use CPUs.
"""

from accelerate import Accelerator
from torch.nn import CrossEntropyLoss
from torch.optim import Adam
from torch.utils.data import DataLoader

from benchmarks.peers.task import TRANSFORM, Images, current_task, start_stopwatch
from vgg_ddp.model.vgg import VGG11


def main() -> None:
    task = current_task()
    start_stopwatch(task)
    accelerator = Accelerator(cpu=True)
    model = VGG11(task.num_classes)
    loss_function = CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=0.001)
    training_dataloader = DataLoader(Images(task.images, TRANSFORM), batch_size=task.batch_size, shuffle=True)
    model, optimizer, training_dataloader = accelerator.prepare(model, optimizer, training_dataloader)
    for epoch in range(task.epochs):
        for inputs, targets in training_dataloader:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_function(outputs, targets)
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}")
    accelerator.save_model(model, task.output)
    accelerator.end_training()


if __name__ == "__main__":
    main()
