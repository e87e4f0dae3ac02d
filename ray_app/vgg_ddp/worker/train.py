"""The training loop that every DDP worker runs, top to bottom: start reading here.

`train_loop` runs on each of Ray Train's workers, and in each process of torchrun. It sets up the worker (`setup.py`),
then trains epoch by epoch; the arithmetic of a step is in `step.py`. `Worker` holds everything that stays the same
during training; `TrainState` holds everything that changes, which is exactly what a checkpoint contains. Ranks must act
together: if one decided alone, the others would wait for it in a collective. So about every quarter of a second, one
all-reduce decides what all ranks do next (`decisions.py`).
"""

import math
import time
from dataclasses import replace

import ray.train

from vgg_ddp.compat.ray_spares import spare_kept
from vgg_ddp.feeds.feed import EvaluationSplit
from vgg_ddp.job import Job, Outcome, RefusedError
from vgg_ddp.model.stored import stored_form
from vgg_ddp.run.files import EVALUATED, METRICS_FILE, PROGRESS_FILE, Row, write_metrics
from vgg_ddp.run.summary import row_to_keep
from vgg_ddp.weights.model_file import write_model
from vgg_ddp.worker.ddp import from_all_ranks
from vgg_ddp.worker.decisions import Decision
from vgg_ddp.worker.failures import report_diverged
from vgg_ddp.worker.graphs import GraphedSteps
from vgg_ddp.worker.hangs import hung_ranks_named
from vgg_ddp.worker.optimizers import lr_factor
from vgg_ddp.worker.setup import set_up
from vgg_ddp.worker.state import TrainState, Worker
from vgg_ddp.worker.step import evaluate, train_step


def train_loop(settings: dict[str, Job]) -> Outcome:
    """Train on this worker until the last epoch, or until all ranks agree to end the run."""
    job = settings["job"]
    try:
        worker, state = set_up(job)
    except RefusedError as refusal:
        if job.run and job.run.lease:
            job.run.lease.leave()
        return Outcome(refusal.kind, str(refusal))
    with hung_ranks_named(worker.monitor, lambda: state.step):
        with spare_kept(job.has_spares, ray.train.get_context().get_local_world_size()):
            outcome = train(worker, state)
        # A test image that cannot be decoded is an error, but must not cost the trained model.
        test_outcome = None if outcome else finish_run(worker, state)
    worker.telemetry.close()
    worker.saver.wait()
    if outcome is None and worker.rank == 0 and not worker.saver.failure:
        write_results(worker, state)
    ended = outcome or test_outcome or Outcome("finished", step=state.step)
    if failure := worker.saver.failure:
        ended = with_failed_write(ended, failure, state.step)
    worker.saver.close()
    if ended.kind == "diverged" and not job.is_local:
        report_diverged(ended)
    return ended


def with_failed_write(outcome: Outcome, failure: str, step: int) -> Outcome:
    """The outcome of a run whose storage failed as well: diverged if it did, since resuming would not help."""
    if outcome.kind == "diverged":
        return replace(outcome, message=f"{outcome.message}. Also, {failure}")
    return Outcome("unsaved", failure, step)


def train(worker: Worker, state: TrainState) -> Outcome | None:
    """Train epoch by epoch; an outcome if the run ends early."""
    graphs = GraphedSteps(worker, state) if worker.graphed else None
    while state.epoch < worker.config.epochs:
        if outcome := train_epoch(worker, state, graphs):
            return outcome
    return None


def train_epoch(worker: Worker, state: TrainState, graphs: GraphedSteps | None) -> Outcome | None:
    """Take the remaining steps of the epoch, evaluate, and save; an outcome if the run ends early."""
    # Above 0 if the run resumes in the middle of the epoch.
    first_step = state.step - state.epoch * worker.steps_per_epoch
    batches = worker.feed.train_batches(state.epoch, first_step)
    if graphs:
        graphs.start_epoch()
    started = time.monotonic() - state.epoch_seconds
    decision = Decision()
    for step in range(first_step, worker.steps_per_epoch):
        is_last = step + 1 == worker.steps_per_epoch
        decides = worker.control.is_due(is_last)
        # Only the step before a decision is timed; it represents the others.
        worker.telemetry.start_step(measured=decides)
        if graphs:
            worker.monitor.arrive()
            graphs.take_step()
        else:
            images, labels = next(batches)
            worker.monitor.arrive()
            train_step(worker, state, images, labels, state.step)
        state.step += 1
        worker.telemetry.end_step()
        state.epoch_seconds = time.monotonic() - started
        if decides:
            decision = worker.control.decide(state.sums)
            worker.monitor.check()
            if outcome := act_on(decision, worker, state, is_last):
                return outcome
    if outcome := finish_epoch(worker, state, started):
        return outcome
    if decision.save or decision.save_at_epoch_end or state.step == worker.total_steps:
        save(worker, state)
    return None


def finish_epoch(worker: Worker, state: TrainState, started: float) -> Outcome | None:
    """Evaluate the model on the validation images, or on the test images if there are none; append the row of metrics.

    Collectives, and a device-to-host sync.
    """
    worker.monitor.arrive()
    train_loss, train_correct, train_count = state.sums.total()
    # `total` waited for the device, so all steps are done now.
    seconds = time.monotonic() - started
    measured = measure(worker, state, worker.evaluation_split)
    if isinstance(measured, Outcome):
        return measured
    state.rows.append(
        {
            "epoch": state.epoch + 1,
            "step": state.step,
            "loss": train_loss / train_count,
            "train_accuracy": train_correct / train_count,
            **dict.fromkeys(EVALUATED, math.nan),
            **measured,
            "lr": lr_at(worker, state.step - 1),
            "images_per_second": train_count / seconds,
            "seconds": seconds,
            "time": time.time(),
        }
    )
    if worker.config.keep_best and row_to_keep(state.rows, worker.config) is state.rows[-1]:
        state.remember_weights()
    state.epoch_seconds = 0.0
    state.sums.restart()
    worker.telemetry.show(state.rows[-1])
    if worker.rank == 0:
        # The driver reads this file for the terminal, TensorBoard, and MLflow.
        rows = list(state.rows)
        worker.saver.write_newest(METRICS_FILE, lambda: write_metrics(worker.run, rows))
    report(worker, state.rows[-1])
    return None


def report(worker: Worker, row: Row) -> None:
    """Report an epoch's metrics to Ray Train, for callbacks and Ray Tune. A collective.

    Checkpoints are not registered with Ray; `run/saver.py` says why.
    """
    worker.monitor.arrive()
    ray.train.report(dict(row))
    for callback in worker.callbacks:
        callback.after_report(None, [dict(row)], None)
    worker.monitor.check()


def finish_run(worker: Worker, state: TrainState) -> Outcome | None:
    """With a validation split, evaluate the test images, once, with the weights that the run keeps. Collectives."""
    if worker.evaluation_split == "test":
        return None
    kept = row_to_keep(state.rows, worker.config)
    if worker.config.keep_best:
        state.return_to_best()
    worker.monitor.arrive()
    measured = measure(worker, state, "test")
    if isinstance(measured, Outcome):
        return measured
    # A new row, because another thread may be writing the old one right now.
    state.rows[int(kept["epoch"]) - 1] = kept | measured
    worker.telemetry.show(measured)
    return None


def measure(worker: Worker, state: TrainState, split: EvaluationSplit) -> Row | Outcome:
    """Loss and accuracy on a split, by their columns; nan without labels. An outcome if an image cannot be decoded.

    Collectives.
    """
    loss, correct, count = evaluate(worker, state, split)
    worker.monitor.check()
    expected = worker.num_evaluated[split]
    if count != expected:
        if refusal := bad_image(worker, state):
            return refusal
        message = (
            f"evaluated {count:.0f} of {expected} {split} images: the files have changed since the command started."
        )
        return Outcome("refused", message, state.step)
    return {
        f"{split}_loss": loss / count if count else math.nan,
        f"{split}_accuracy": correct / count if count else math.nan,
    }


def act_on(decision: Decision, worker: Worker, state: TrainState, is_last: bool) -> Outcome | None:
    """Do what all ranks have decided; an outcome if that ends the run."""
    worker.telemetry.mark("communication")
    worker.telemetry.show(
        {
            "step": state.step,
            "workers": worker.world_size,
            "checkpoint_time": worker.saver.checkpoint_time,
            "checkpoint_every_seconds": worker.config.checkpoint_every_seconds,
        }
    )
    if worker.telemetry.progress_is_due():
        # Only rank 0's loss: a progress bar is not worth a collective.
        worker.telemetry.write_progress(
            state.step, worker.steps_per_epoch, worker.config.global_batch, decision.mean_loss
        )
    if decision.bad_step is not None:
        worker.telemetry.show({"diverged": 1.0})
        return Outcome("diverged", describe_divergence(worker, decision.bad_step), decision.bad_step)
    if decision.give_up:
        return bad_image(worker, state) or Outcome("unsaved", worker.saver.failure or "", state.step)
    # After the last step of an epoch, `train_epoch` saves once the epoch's metrics are known.
    save_now = decision.save and not is_last
    if decision.stop or save_now or (decision.check_preemption and is_being_preempted(worker)):
        save(worker, state)
    worker.telemetry.show_rank()
    return Outcome("stopped", step=state.step) if decision.stop else None


def save(worker: Worker, state: TrainState) -> None:
    """Start to write a checkpoint. A collective."""
    run = {"precision": worker.precision, "fingerprint": worker.fingerprint}
    worker.monitor.arrive()
    snapshot = state.snapshot() | run
    worker.monitor.check()
    worker.saver.save(snapshot, worker.monitor.beat)
    worker.control.mark_saved()
    worker.telemetry.mark("checkpoint")


def write_results(worker: Worker, state: TrainState) -> None:
    """Write the results of a finished run: all metrics, and the model with its classes and preprocessing."""
    saver, stored = worker.saver, stored_form(state.model)
    # Before the run is finished: nobody would delete it after a crash of the driver.
    saver.write_if_possible(PROGRESS_FILE, lambda: worker.run.delete(PROGRESS_FILE))
    # Metrics first: a model that is older belongs to fewer epochs. A run whose metrics cannot be written is still worth
    # its model.
    saver.write_if_possible(METRICS_FILE, lambda: write_metrics(worker.run, state.rows), retry=True)
    saver.write_reliably(
        lambda: write_model(worker.run, stored, worker.config.recipe, worker.class_names, worker.preprocessing)
    )


def bad_image(worker: Worker, state: TrainState) -> Outcome | None:
    """The outcome if any rank found an image that cannot be decoded. A collective."""
    message = next(filter(None, from_all_ranks(worker.feed.failure)), None)
    return Outcome("refused", message, state.step) if message else None


def is_being_preempted(worker: Worker) -> bool:
    """Whether a node is about to be preempted, and no checkpoint was saved for that yet. A collective."""
    info = ray.train.get_preemption_info()
    return info is not None and worker.control.is_new_preemption(info.preempted_ranks, info.deadline_ms)


def lr_at(worker: Worker, step: int) -> float:
    """The learning rate at a step, as reported in the metrics."""
    return worker.recipe.lr * lr_factor(worker.recipe, step, worker.total_steps)


def describe_divergence(worker: Worker, step: int) -> str:
    epoch, step_of_epoch = divmod(step, worker.steps_per_epoch)
    return (
        f"the loss became nan or infinite in epoch {epoch + 1}, step {step_of_epoch + 1} of {worker.steps_per_epoch} "
        f"(step {step + 1} of the run), at a learning rate of {lr_at(worker, step):.4g}: start a new run with a lower "
        "--lr or --precision fp32"
    )
