"""What a command does to the run folder while it trains: the program's own code, without the computation."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from vgg_ddp.config import TrainConfig
from vgg_ddp.job import Job, RefusedError
from vgg_ddp.machine.code import Code
from vgg_ddp.run import checkpoint
from vgg_ddp.run.files import COLUMNS, METRICS_FILE, write_config, write_metrics, write_progress
from vgg_ddp.run.runs import Run
from vgg_ddp.run.saver import Saver
from vgg_ddp.run.storage import Folder
from vgg_ddp.worker.agreement import agree_on_start
from vgg_ddp.worker.train import write_results

STEPS, STEP_SECONDS = 3, 6.0
CODE = Code.of_this_process()


def config_of(storage_path: str) -> TrainConfig:
    """The settings of the run, whose epochs have one step each."""
    return TrainConfig(
        run_name="run", storage_path=storage_path, epochs=STEPS, num_workers=0, device="cpu", precision="fp32"
    )


class WatchedSaver(Saver):
    """A saver that says when a checkpoint is complete."""

    def __init__(self, run: Folder, saved: Callable[[], None]) -> None:
        self._saved: Callable[[], None] | None = None
        self._unsaved = 0
        super().__init__(run, 0)
        self._saved = saved

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "checkpoint_time" and self._saved:
            self._unsaved -= 1
            self._saved()

    def save(self, state: checkpoint.State, beat: Callable[[], None] = lambda: None) -> None:
        super().save(state, beat)
        self._unsaved += 1
        assert self._unsaved <= 1 or self.failure, "training is more than one checkpoint ahead"


def train(
    run: Run,
    resume: Callable[[str | None], None],
    make_saver: Callable[[Folder], Saver],
    pause: Callable[[float], None],
) -> str:
    """What `train_loop` does on rank 0, without the computation; how it ended.

    Args:
        run: the run.
        resume: called with the name of the checkpoint that it resumes from.
        make_saver: makes the saver for the run folder.
        pause: called in each step with its duration in seconds.
    """
    job = Job(run.config, None, run.folder, use_gpu=False, is_local=True, code=CODE)  # type: ignore[arg-type]
    try:
        start = agree_on_start(job, torch.device("cpu"))
    except RefusedError as refusal:
        return str(refusal)
    folder = start.run
    resume(start.newest)
    step = start.state["step"] if start.state else 0
    saver = make_saver(folder)
    saver.write_reliably(lambda: write_config(folder, run.config.to_dict()))
    rows = [_row(number) for number in range(1, step + 1)]
    while step < STEPS and not saver.failure:
        pause(STEP_SECONDS)
        step += 1
        rows = [*rows, _row(step)]
        saver.write_in_background(lambda step=step: write_progress(folder, {"step": step}))  # type: ignore[misc]
        saver.write_newest(METRICS_FILE, lambda rows=rows: write_metrics(folder, rows))  # type: ignore[misc]
        saver.save({"step": step, "precision": "fp32"})
    saver.wait()
    worker: Any = SimpleNamespace(
        saver=saver, run=folder, config=run.config, class_names=("a",), preprocessing={"image_size": 32}
    )
    if not saver.failure:
        write_results(worker, SimpleNamespace(model=torch.nn.Linear(1, 1), rows=rows))  # type: ignore[arg-type]
    failure = saver.failure
    saver.close()
    return f"unsaved: {failure}" if failure else "finished"


def _row(epoch: int) -> dict[str, float]:
    return dict.fromkeys(COLUMNS, 0.5) | {"epoch": epoch, "step": epoch}
