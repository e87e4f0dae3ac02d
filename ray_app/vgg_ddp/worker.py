"""One rank of a run: its part of each step, each evaluation and each checkpoint."""

import time
from dataclasses import dataclass, field

import ray.train
import torch

from vgg_ddp import checkpoint
from vgg_ddp.batches import halve, normalize, rank_range
from vgg_ddp.collectives import from_all_ranks
from vgg_ddp.config import TrainConfig
from vgg_ddp.control import Control, Decision
from vgg_ddp.data import Dataset
from vgg_ddp.fast_vgg import FastVGG11, build_fast_model
from vgg_ddp.feeds import Batches, Feed, MemoryFeed, as_tensor
from vgg_ddp.ingest import Inputs
from vgg_ddp.job import Job, Outcome, Ranks
from vgg_ddp.metrics import Sums
from vgg_ddp.model import VGG11, build_model
from vgg_ddp.optim import build_optimizers, schedule
from vgg_ddp.replica import DTYPES, Replica
from vgg_ddp.report import Row, write_metrics, write_startup
from vgg_ddp.saving import Saver
from vgg_ddp.storage import Folder
from vgg_ddp.stream import StreamedDataset
from vgg_ddp.telemetry import Telemetry
from vgg_ddp.tensorboard import write_events


@dataclass
class Progress:
    """How far the run is.

    Attributes:
        step: optimizer steps done.
        seconds: of training in the unfinished epoch.
        rows: of metrics, one for each finished epoch.
    """

    step: int = 0
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


class Worker:
    """One rank of the run: its replica, its view of the images, and how far it is."""

    def __init__(
        self,
        job: Job,
        inputs: Inputs,
        run: Folder,
        precision: str,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        config, dataset = job.config, inputs.dataset
        rank, world_size = ranks.rank, ranks.world_size
        self.config, self.run, self.device, self.rank, self.world_size = config, run, device, rank, world_size
        self.precision, self.recipe = precision, config.chosen_recipe()
        self.feed = _make_feed(dataset, config, ranks, device)
        self.mean, self.std = torch.tensor(dataset.mean, device=device), torch.tensor(dataset.std, device=device)
        self.steps_per_epoch = dataset.num_train // config.global_batch
        self.num_test = dataset.num_test
        self.total_steps = config.epochs * self.steps_per_epoch
        self.fingerprint = {"training_images": dataset.num_train, "class_names": list(dataset.class_names)}
        self.progress = Progress()
        self.sums = Sums(device)
        self.saver = Saver(run, rank)
        # Under Ray one look is enough; under torchrun a signal may reach any of the processes.
        stop_requested = job.stop_requested if rank == 0 or job.is_local else None
        self.control = Control(
            device,
            config.checkpoint_every_seconds,
            stop_requested,
            lambda: self.saver.failure is not None or self.feed.failure is not None,
            job.live_seconds if rank == 0 else None,
        )
        # Ranks that round differently would drift apart if each worked out all of Muon's steps for itself.
        share_muon = not ranks.are_alike or (device.type == "cpu" and ranks.on_one_machine)
        self.replica = Replica(
            self._build_model(inputs, job.batch_norm),
            device,
            precision,
            config.compile,
            config.gradients,
            lambda model: build_optimizers(model, self.recipe, config.global_batch, DTYPES[precision], share_muon),
        )
        # A compiled model is compiled for the shapes that it meets first: let them be those of training.
        settling_batch = len(rank_range(config.global_batch, rank, world_size)) if config.compile else 2
        self.replica.settle_reducer(settling_batch, config.image_size)
        self.phases: dict[str, float] = {}
        self.telemetry = Telemetry(run, self.saver, rank, device, self.replica.module, not job.is_local, config.profile)

    def _build_model(self, inputs: Inputs, batch_norm: bool) -> VGG11 | FastVGG11:
        config, dataset, pretrained = self.config, inputs.dataset, inputs.pretrained
        num_classes = len(dataset.class_names)
        model: VGG11 | FastVGG11
        if config.recipe == "classic":
            model = build_model(num_classes, config.seed, batch_norm)
        else:
            model = build_fast_model(num_classes, config.seed)
        if pretrained:
            tensors = {name: as_tensor(values, torch.device("cpu")) for name, values in pretrained.tensors.items()}
            model.load(tensors, with_head=pretrained.class_names == dataset.class_names)
        return model

    def resume(self, name: str) -> Outcome | None:
        """Take up a checkpoint; an outcome if it cannot belong to this run."""
        state = checkpoint.read(self.run, name)
        if state["fingerprint"] != self.fingerprint:
            return Outcome("refused", f"{self.run} was trained on other images: give the --data it was started with.")
        try:
            self.replica.load_state(state["replica"])
        except ValueError as error:
            return Outcome("refused", f"{self.run / name} cannot be resumed: {error}.")
        self.progress = Progress(state["step"], state["seconds"], state["rows"])
        self.sums.restart_from(state["sums"], self.rank)
        if self.rank == 0:
            print(f"Resumed at step {self.progress.step} from {name}, {self.world_size} worker(s)", flush=True)
        return None

    def save(self) -> None:
        """Save a checkpoint. A collective: the ranks' statistics and sums are part of it."""
        progress = self.progress
        state = {"step": progress.step, "seconds": progress.seconds, "rows": list(progress.rows)}
        state["precision"] = self.precision
        state |= {"replica": self.replica.state(), "sums": self.sums.total(), "fingerprint": self.fingerprint}
        self.saver.save(state)
        self.control.mark_saved()
        self.telemetry.mark("checkpoint")

    def train_epoch(self) -> Outcome | None:
        """Train to the end of the epoch, evaluate, note its metrics and save; an outcome if the run ends before."""
        progress = self.progress
        epoch = len(progress.rows)
        end_step = (epoch + 1) * self.steps_per_epoch
        batches = self.feed.train_batches(epoch, progress.step - epoch * self.steps_per_epoch)
        started = time.monotonic() - progress.seconds
        decision = Decision()
        while progress.step < end_step:
            # The last step before a decision stands for those since the one before.
            decides = (progress.step + 1) % self.control.steps_between_decisions == 0 or progress.step + 1 == end_step
            self.telemetry.start_step(measured=decides)
            self._train_step(batches)
            progress.seconds = time.monotonic() - started
            if self.phases:
                self._note_first_step()
            if not decides:
                continue
            decision = self.control.decide()
            self.telemetry.mark("communication")
            self.telemetry.show({"step": progress.step, "workers": self.world_size})
            if decision.show:
                self._write_live()
            if decision.bad_step is not None:
                self.telemetry.show({"diverged": 1.0})
                return Outcome("diverged", self._describe_divergence(decision.bad_step), decision.bad_step)
            if decision.give_up:
                return self._refusal() or Outcome("unsaved", self.saver.failure or "", progress.step)
            save = decision.save and progress.step < end_step
            if decision.stop or save or (decision.check_preemption and self._is_being_preempted()):
                self.save()
            self.telemetry.show_rank()
            if decision.stop:
                return Outcome("stopped", step=progress.step)
        if outcome := self._finish_epoch(epoch, started):
            return outcome
        if decision.save or decision.save_at_epoch_end or progress.step == self.total_steps:
            self.save()
        return None

    def _train_step(self, batches: Batches) -> None:
        config, replica = self.config, self.replica
        images, labels = next(batches)
        images = self._prepare(images)
        self.telemetry.mark("data")
        loss_sum, logits = replica.loss(replica.ddp, images, labels, self.recipe.label_smoothing)
        # DDP averages over the ranks: scaled so, the average is the gradient of the global batch's mean loss.
        (loss_sum * (self.world_size / config.global_batch)).backward()
        self.telemetry.mark("communication")
        replica.optimizers.step(self._part_of_peak_lr(self.progress.step))
        self.sums.add(loss_sum, logits, labels)
        self.control.watch(self.progress.step, loss_sum)
        self.telemetry.mark("compute")
        self.telemetry.end_step()
        self.progress.step += 1

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        """What the model sees of uint8 images (B, H, W, 3) in this epoch."""
        images = normalize(images, self.mean, self.std, self.replica.dtype)
        return halve(images) if len(self.progress.rows) < self.config.half_size_epochs else images

    def _part_of_peak_lr(self, step: int) -> float:
        return schedule(step, self.total_steps, self.recipe.warmup_fraction)

    def _note_first_step(self) -> None:
        """Write down how long it took from the command to here. A device-to-host sync, once in a run."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.rank == 0:
            phases = self.phases | {"first step": time.time()}
            self.saver.note(lambda: write_startup(self.run, phases))
        self.phases = {}

    def _finish_epoch(self, epoch: int, started: float) -> Outcome | None:
        """Evaluate and note the epoch's row of metrics; an outcome if that is not possible.

        Collectives and a device-to-host sync.
        """
        progress = self.progress
        train_loss, train_correct, train_count = self.sums.total()
        progress.seconds = time.monotonic() - started
        self.replica.average_buffers()
        test_loss, test_correct, test_count = self.evaluate().total()
        if test_count != self.num_test:
            refusal = self._refusal()
            if refusal is None:
                raise RuntimeError(f"{test_count:.0f} of {self.num_test} test images were there: did the files change?")
            return refusal
        progress.rows.append(
            {
                "epoch": epoch + 1,
                "step": progress.step,
                "loss": train_loss / train_count,
                "train_accuracy": train_correct / train_count,
                "test_loss": test_loss / test_count,
                "test_accuracy": test_correct / test_count,
                "lr": self.recipe.lr * self._part_of_peak_lr(progress.step - 1),
                "images_per_second": train_count / progress.seconds,
                "seconds": progress.seconds,
                "time": time.time(),
            }
        )
        self.telemetry.show(progress.rows[-1])
        progress.seconds = 0.0
        self.sums = Sums(self.device)
        if self.rank == 0:
            self.saver.note(lambda: write_metrics(self.run, progress.rows))
            self.saver.note(lambda: write_events(self.run, progress.rows))
        return None

    def _refusal(self) -> Outcome | None:
        """The outcome if a rank met an image that cannot be used. A collective."""
        message = next(filter(None, from_all_ranks(self.feed.failure)), None)
        return Outcome("refused", message, self.progress.step) if message else None

    @torch.no_grad()
    def evaluate(self) -> Sums:
        """This rank's part of the sums over the test images, each of which belongs to exactly one rank."""
        replica, sums = self.replica, Sums(self.device)
        replica.module.eval()
        for images, labels in self.feed.test_batches():
            loss_sum, logits = replica.loss(replica.module, self._prepare(images), labels)
            sums.add(loss_sum, logits, labels)
        replica.module.train()
        return sums

    def _write_live(self) -> None:
        """Let rank 0 write down how far the run is. A collective and a device-to-host sync."""
        loss, _, count = self.sums.total()
        step, per_epoch = self.progress.step, self.steps_per_epoch
        position = {"step": step, "steps_per_epoch": per_epoch, "loss": loss / count}
        if self.rank == 0:
            self.telemetry.write_live(step * self.config.global_batch, position)

    def _is_being_preempted(self) -> bool:
        """Whether a node is about to go for which no checkpoint was saved yet. A collective."""
        info = ray.train.get_preemption_info()
        return info is not None and self.control.is_new_preemption(info.preempted_ranks, info.deadline_ms)

    def _describe_divergence(self, step: int) -> str:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return (
            f"the loss became nan or infinite in epoch {epoch + 1}, step {step_of_epoch + 1} of "
            f"{self.steps_per_epoch} (step {step + 1} of the run), at a learning rate of "
            f"{self.recipe.lr * self._part_of_peak_lr(step):.4g}: start anew with a lower --lr or --precision fp32"
        )


def _make_feed(dataset: Dataset | StreamedDataset, config: TrainConfig, ranks: Ranks, device: torch.device) -> Feed:
    if isinstance(dataset, Dataset):
        return MemoryFeed(dataset, config, ranks.rank, ranks.world_size, device)
    # Ray Data takes a while to import.
    from vgg_ddp.stream_feed import StreamFeed

    return StreamFeed(dataset, config, ranks.rank, ranks.world_size, device)
