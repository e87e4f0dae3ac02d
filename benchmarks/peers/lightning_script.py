"""Lightning, as in https://lightning.ai/docs/pytorch/stable/starter/introduction.html."""

import lightning as L
from torch import Tensor, nn, optim, utils

from benchmarks.peers.task import TRANSFORM, Images, current_task, start_stopwatch
from vgg_ddp.model.vgg import VGG11


class LitVGG(L.LightningModule):
    """The model with its training step."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = VGG11(num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        x, y = batch
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.Adam(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    task = current_task()
    start_stopwatch(task)
    dataset = Images(task.images, TRANSFORM)
    train_loader = utils.data.DataLoader(dataset, batch_size=task.batch_size, shuffle=True)
    trainer = L.Trainer(
        max_epochs=task.epochs,
        accelerator="cpu",
        devices=task.num_workers,
        strategy="ddp",
        default_root_dir=task.output,
    )
    trainer.fit(model=LitVGG(task.num_classes), train_dataloaders=train_loader)
