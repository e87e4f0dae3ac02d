"""Commands that train a run on simulated S3: the program's own code saves, resumes, and holds the lease.

Only what computes is missing: a step takes `STEP_SECONDS` and changes nothing but the number of steps. Each command has
two processes, as under Ray: the driver, and rank 0, which the driver starts again if it dies.
"""

import itertools
import json
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from pyarrow import fs

from support.simulated_s3 import BUCKET, SimulatedClient, SimulatedS3, Store, Write, digest
from support.simulated_training import STEPS, WatchedSaver, config_of, train
from support.simulation import Process, World, wait_for
from vgg_ddp.flags import UsageError
from vgg_ddp.run import checkpoint, conditional, lease, lock, notes, saver, storage
from vgg_ddp.run.files import (
    METRICS_FILE,
    MODEL_FILE,
    PROGRESS_FILE,
)
from vgg_ddp.run.lease import LEASE_FILE
from vgg_ddp.run.lock import ChangedError
from vgg_ddp.run.runs import Run, open_run, require_writable
from vgg_ddp.run.storage import KEEP, MANIFEST_FILE, STATE_FILE

RESTARTS = 2
STEP_CHARACTERS = len("checkpoint_00000000")
FOLDER = f"{BUCKET}/runs/run"
CONFIG = config_of(f"s3://{BUCKET}/runs")
LAST_MACHINE = 9
NOTHING_ELSE = re.compile(
    rf"{BUCKET}/runs/|{FOLDER}/(|config.json|metrics.csv|model.safetensors|lease.json"
    r"|checkpoint_\d{8}_[0-9a-f]{6}/(|state.pt|manifest.json))"
)


@dataclass
class Command:
    """One command.

    Attributes:
        processes: the driver, then each process that was rank 0.
        is_stopped: whether the driver was told to stop, as by Ctrl-C; rank 0 may outlive it.
        outcome: how it ended, as far as it did.
    """

    machine: int
    processes: list[Process] = field(default_factory=list)
    is_stopped: bool = False
    outcome: str = ""

    def is_alive(self) -> bool:
        return any(process.state != "dead" for process in self.processes)


class Runs:
    """The run, the commands that were started for it, and what must be true at all times.

    Attributes:
        damaged: the checkpoints that `damage` has changed.
        saved: the newest checkpoints that were reported as complete, which must be kept.
        finisher: the command that finished the run.
        violations: what was not true.
        has_late_writes: whether a request was carried out after its process was killed, or while it was frozen, or
            after its command had lost the lease. Nothing can prevent that.
        may_finish_again: whether a command may finish the run although another one has.
    """

    def __init__(self, world: World, store: Store) -> None:
        self.world, self.store = world, store
        self.commands: list[Command] = []
        self.violations: list[str] = []
        self.saved: list[str] = []
        self.damaged: set[str] = set()
        self.finisher: Command | None = None
        self.has_late_writes = self.may_finish_again = False
        store.before_write, store.after_write = self._before_write, self._after_write

    def start(self, machine: int) -> Command:
        command = Command(machine)
        self.commands.append(command)
        command.processes.append(self.world.start("driver", machine, lambda: self._drive(command)))
        return command

    def _drive(self, command: Command) -> None:
        """What `launch` does."""
        try:
            run = open_run(CONFIG, [])
            if run.exists and run.is_finished():
                command.outcome = "finished before"
                return
            require_writable(run)
            with lock.locked(run) as run:
                lock.require_unchanged(run)
                command.outcome = self._train(command, run)
                with suppress(OSError):
                    run.folder.delete(PROGRESS_FILE)
        except ChangedError:
            self._drive(command)
        except UsageError as error:
            command.outcome = f"refused: {error}"

    def _train(self, command: Command, run: Run) -> str:
        """What Ray Train does: it starts rank 0 again if it dies."""
        sent = pickle.dumps(run.folder)
        for _ in range(RESTARTS + 1):
            results: list[str] = []
            work = lambda: results.append(self._be_rank_zero(replace(run, folder=pickle.loads(sent))))  # noqa: B023, E731
            worker = self.world.start("worker", command.machine, work)
            command.processes.append(worker)
            self.world.wait(lambda: worker.state == "dead" or command.is_stopped)  # noqa: B023
            if results:
                return results[0]
            if command.is_stopped:
                return "stopped"
        return "failed"

    def _be_rank_zero(self, run: Run) -> str:
        before = set(self.saved)
        return train(
            run,
            lambda newest: self._require_newest(newest, before & set(self.saved)),
            lambda folder: WatchedSaver(folder, self._add_saved),
            self.world.pause,
        )

    def interrupt(self, processes: list[Process], how: str) -> None:
        """Kill, freeze, or stop processes."""
        for process in processes:
            if how == "stop":
                self.command_of(process).is_stopped = True
            elif process.state != "dead":
                process.state = "dead" if how == "kill" else "frozen"

    def has_reached(self, index: int, phase: str) -> bool:
        """Whether the write of this number is begun, sent, or done."""
        writes = self.store.writes
        if len(writes) <= index:
            return False
        return {"begun": True, "sent": writes[index].is_sent, "done": writes[index].is_done}[phase]

    def wake(self) -> None:
        for process in self.world.processes:
            process.state = "running" if process.state == "frozen" else process.state

    def deliver(self) -> None:
        """Carry out the requests of frozen and dead processes that are still under way."""
        for write in self.store.under_way():
            self.store.carry_out(write)

    def finish(self) -> None:
        """Let all commands end, and then a last one; the run is finished, and nothing is left behind."""
        self.wake()
        self.store.faults, self.store.failing_reads = [], 0
        self.world.run(200.0, lambda: not any(command.is_alive() for command in self.commands))
        for command in self.commands:
            if command.is_alive():
                self.violations.append(f"{command} does not end")
        was_late, self.has_late_writes = self.has_late_writes, False
        last = self.start(LAST_MACHINE)
        self.world.run(200.0, lambda: not last.is_alive())
        again = self.start(LAST_MACHINE)
        self.world.run(20.0, lambda: not again.is_alive())
        if last.outcome not in ("finished", "finished before") or again.outcome != "finished before":
            self.violations.append(f"the last commands ended: {last.outcome}, {again.outcome}")
        # A command that trains deletes the marker of one that failed at its start; this one had nothing to train.
        markers = {f"{BUCKET}/runs/.writable-run"} if last.outcome == "finished before" else set()
        left = [name for name in self.store.objects if not NOTHING_ELSE.fullmatch(name) and name not in markers]
        checkpoints = [name for name in self.store.names(FOLDER) if name.endswith(MANIFEST_FILE)]
        # Only a command that trains deletes what arrived late.
        if (left or len(checkpoints) > KEEP) and not (was_late and last.outcome == "finished before"):
            self.violations.append(f"left behind: {left}, {checkpoints}")
        for process in self.world.processes:
            expected = OSError if process.name.startswith("worker") else ()
            if process.failure and not isinstance(process.failure, expected):
                self.violations.append(f"{process}: {process.failure!r}")

    def identity(self) -> str:
        return f"{self.world.process.machine}/{self.world.process.name}"

    def is_dead(self, identity: str) -> bool:
        """As far as the running process can know."""
        ended = {f"{process.machine}/{process.name}" for process in self.world.processes if process.state == "dead"}
        return identity in ended and identity.startswith(f"{self.world.process.machine}/")

    def command_of(self, process: Process) -> Command:
        return next(command for command in self.commands if process in command.processes)

    def holds_lease(self, process: Process) -> bool:
        """Whether the command of a process holds the lease."""
        driver = self.command_of(process).processes[0]
        content = json.loads(self.store.objects[f"{FOLDER}/{LEASE_FILE}"].content)
        return bool(content["owner"]) and content["driver"] == f"{driver.machine}/{driver.name}"

    def is_finished(self) -> bool:
        """Whether all epochs and the model are stored, the model last."""
        metrics, model = (self.store.objects.get(f"{FOLDER}/{name}") for name in (METRICS_FILE, MODEL_FILE))
        return bool(metrics and model and len(metrics.content.splitlines()) > STEPS and metrics.at <= model.at)

    def damage(self, index: int, file: str, content: Callable[[bytes], bytes]) -> None:
        """Damage a file of a checkpoint, the newest one being 0, if there is one."""
        names = sorted({name.partition("/")[0] for name in self.store.names(FOLDER) if name.endswith(MANIFEST_FILE)})
        key = f"{FOLDER}/{names[-1 - index]}/{file}" if index < len(names) else ""
        if key in self.store.objects:
            name = names[-1 - index]
            self.damaged.add(name)
            # Nobody knows about the damage before a resume, so it counts as one that is kept.
            self.saved = self.saved if name in self.saved else self.saved[1 - KEEP :]
            self.store.put(key, content(self.store.objects[key].content))

    def _add_saved(self) -> None:
        """Note the checkpoint that the running process has just reported as complete."""
        done = [write.name for write in self.store.writes if write.is_done and write.process is self.world.process]
        manifests = [name for name in done if name.endswith(MANIFEST_FILE) and name in self.store.objects]
        if self.holds_lease(self.world.process):
            self.saved = [*self.saved, max(manifests).split("/")[-2]][-KEEP:]

    def _require_newest(self, found: str | None, saved: set[str]) -> None:
        """A resume finds the newest checkpoint that was reported as complete, or a newer one, and no damaged one."""
        saved -= self.damaged
        self.saved = [name for name in self.saved if name not in self.damaged]
        if (found or "") < max(saved, default="")[:STEP_CHARACTERS] or found in self.damaged:
            self.violations.append(f"resumed from {found}, although {saved} are complete, and {self.damaged} damaged")

    def _before_write(self, write: Write) -> None:
        """Only the holder of the lease begins to write to the run folder."""
        is_in_run = write.name.startswith(f"{FOLDER}/") and not write.name.endswith(LEASE_FILE)
        if is_in_run and not self.holds_lease(write.process):
            self.violations.append(f"{write.process} writes {write.name} without the lease")

    def _after_write(self, write: Write) -> None:
        is_in_run = write.name.startswith(f"{FOLDER}/") and not write.name.endswith(LEASE_FILE)
        if write.process.state != "running" or (is_in_run and not self.holds_lease(write.process)):
            self.has_late_writes, self.finisher = True, None
        if write.name.endswith(MANIFEST_FILE) and write.name in self.store.objects:
            # The whole checkpoint was written again, because a later request had failed.
            self.damaged.discard(write.name.split("/")[-2])
        self._check(write.process)

    def _check(self, process: Process) -> None:
        """What is true after every write, for the most part except those that arrive late."""
        names = self.store.names(FOLDER)
        complete = {name.split("/")[0] for name in names if name.endswith(MANIFEST_FILE)}
        if len(complete) < len(self.saved) and not self.damaged:
            self.violations.append(f"of {self.saved}, only {complete} are left")
        if not self.has_late_writes:
            for name in names:
                state = name.replace(MANIFEST_FILE, STATE_FILE)
                if state not in names and name.split("/")[0] not in self.damaged:
                    self.violations.append(f"{name} refers to a missing file")
            # A rank 0 that was killed right after it finished the run is started again, and finishes it again.
            is_again = self.may_finish_again or not self.finisher or process in self.finisher.processes
            if not is_again and not self.is_finished():
                self.violations.append("the run was finished, and is not anymore")
        if self.is_finished() and not self.finisher:
            self.finisher = self.command_of(process)


@contextmanager
def simulated_runs() -> Iterator[Runs]:
    """A run on simulated S3. Within this context, the program's clock, threads, and random digits are not real."""
    world = World()
    store = Store(world)
    runs = Runs(world, store)
    numbers = itertools.count()
    uuid = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=digest(next(numbers))))
    filesystems = SimpleNamespace(
        FileSystem=SimpleNamespace(from_uri=lambda uri: (SimulatedS3(store), uri.removeprefix("s3://"))),
        **{name: getattr(fs, name) for name in ("S3FileSystem", "LocalFileSystem", "FileType", "FileSelector")},
    )
    notes.print_note_once.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for module in (lease, saver, storage):
            patch.setattr(module, "time", world.time_module())
        for module in (lease, checkpoint, storage):
            patch.setattr(module, "uuid", uuid)
        patch.setattr(lease, "threading", world.threading_module())
        patch.setattr(lease, "own_identity", runs.identity)
        patch.setattr(lease, "is_dead", runs.is_dead)
        patch.setattr(saver, "ThreadPoolExecutor", world.executor)
        patch.setattr(saver, "wait", wait_for)
        patch.setattr(storage, "fs", filesystems)
        patch.setattr(storage, "with_patience", lambda filesystem: filesystem)
        patch.setattr(conditional, "_client", lambda _: SimulatedClient(store))
        try:
            yield runs
        finally:
            world.close()
