"""Set up a worker before its first step: check that the ranks agree, build the model, resume."""

import logging
import time
from collections.abc import Callable

import ray
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from vgg_ddp.compat.torch_dynamo import no_dynamo
from vgg_ddp.compat.torch_store import set_collective_timeout
from vgg_ddp.config import TrainConfig
from vgg_ddp.feeds.choose import fits_on, make_feed
from vgg_ddp.feeds.feed import Feed
from vgg_ddp.feeds.memory_feed import MemoryFeed
from vgg_ddp.flags import UsageError
from vgg_ddp.job import Inputs, Job, RefusedError
from vgg_ddp.machine.gpus import fall_back, find_gpus
from vgg_ddp.machine.limits import usable_cores
from vgg_ddp.machine.malloc import keep_freed_memory
from vgg_ddp.machine.precision import DTYPES, has_tf32, prepare_gpu, processor_name
from vgg_ddp.model.conv import use_fast_convolutions
from vgg_ddp.observe.telemetry import Telemetry
from vgg_ddp.recipes import Recipe
from vgg_ddp.run import checkpoint
from vgg_ddp.run.chosen import CHOSEN_FILE, write_chosen
from vgg_ddp.run.files import write_config
from vgg_ddp.run.notes import print_note
from vgg_ddp.run.saver import Saver
from vgg_ddp.worker.agreement import Start, agree_on_start, require_same_code, require_same_images_and_storage
from vgg_ddp.worker.ddp import SYNC_BUFFERS, from_all_ranks, warm_up_reducer
from vgg_ddp.worker.decisions import Control
from vgg_ddp.worker.hangs import HangMonitor
from vgg_ddp.worker.metrics import Sums
from vgg_ddp.worker.model import prepare_model
from vgg_ddp.worker.optimizers import Schedule, build_optimizers
from vgg_ddp.worker.state import TrainState, Worker


def set_up(job: Job) -> tuple[Worker, TrainState]:
    """Make this process a rank of the run, at the first step or at the step it resumes from. Collectives.

    Raises:
        RefusedError: on all ranks, if the run cannot start with these settings.
    """
    phases = job.phases | {"workers started": time.time()}
    config, context = job.config, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if not (job.is_local or config.verbose):
        # Ray Train's print also logs to the root logger, and the driver would show each line twice.
        logging.getLogger().setLevel(logging.WARNING)
    device = _choose_device(job, rank)
    _prepare_process(job, rank, context.get_local_world_size(), device)
    require_same_code(job.code)
    inputs: Inputs = ray.get(job.inputs) if isinstance(job.inputs, ray.ObjectRef) else job.inputs
    require_same_images_and_storage(job, inputs)
    start = agree_on_start(job, device)
    _require_resumable(job, inputs, start)
    dataset, recipe = inputs.dataset, config.chosen_recipe()

    on_one_machine = world_size == context.get_local_world_size()
    share_muon = _shares_muon(device, world_size, on_one_machine)
    model = prepare_model(config, recipe, inputs, world_size)
    ddp_model, state = _start_state(model, config, recipe, device, DTYPES[start.precision], share_muon)
    feed, saver = _make_feed(inputs, config, rank, world_size, device), Saver(start.run, rank)
    steps_per_epoch = dataset.num_train // config.global_batch
    monitor = HangMonitor(config.collective_timeout_seconds)
    worker = Worker(
        config,
        recipe,
        start.run,
        rank,
        world_size,
        device,
        start.precision,
        ddp_model,
        feed,
        mean=torch.tensor(dataset.mean, device=device),
        std=torch.tensor(dataset.std, device=device),
        class_names=dataset.class_names,
        preprocessing={"image_size": config.image_size, "mean": dataset.mean, "std": dataset.std},
        num_evaluated={"validation": dataset.num_validation, "test": dataset.num_test},
        steps_per_epoch=steps_per_epoch,
        fingerprint=_fingerprint(inputs),
        schedule=Schedule(recipe, state.optimizers.peak_lrs, config.epochs * steps_per_epoch, device),
        control=_make_control(job, rank, device, saver, feed, monitor.arrive),
        saver=saver,
        telemetry=Telemetry(start.run, saver, rank, device, model, not job.is_local, config.profile),
        monitor=monitor,
        graphed=_uses_graphs(config, model, feed, on_one_machine and not share_muon),
        callbacks=job.callbacks,
    )
    phases["model built"] = time.time()
    if start.newest:
        _resume(worker, state, start.newest, start.state or checkpoint.read(start.run, start.newest))
    worker.telemetry.phases = phases
    if rank == 0 and not saver.failure:
        _record_settings(worker, type(model).__name__)
    return worker, state


def _choose_device(job: Job, rank: int) -> torch.device:
    """This worker's GPU, or the CPU if the run is not to use GPUs or one of the workers cannot. A collective.

    The process group has been chosen by the same rule.
    """
    if not job.use_gpu:
        return torch.device("cpu")
    # Without Ray's processes, the driver has looked.
    problems = [] if job.is_local else [problem for problem in from_all_ranks(find_gpus().problem) if problem]
    if not problems:
        gpu: torch.device = ray.train.torch.get_device()
        return gpu
    try:
        fall_back(job.config.device, problems[0], is_announced=rank == 0)
    except UsageError as error:
        raise RefusedError(str(error)) from error
    return torch.device("cpu")


def _fingerprint(inputs: Inputs) -> dict[str, object]:
    dataset = inputs.dataset
    return {
        "training_images": dataset.num_train,
        "class_names": list(dataset.class_names),
        "images": inputs.digest,
    }


def _prepare_process(job: Job, rank: int, processes_here: int, device: torch.device) -> None:
    if job.is_local and dist.is_initialized():
        # Ray's local mode has no setting for the timeout.
        set_collective_timeout(job.config.collective_timeout_seconds)
    if device.type == "cuda":
        prepare_gpu(device)
    keep_freed_memory()
    torch.set_num_threads(max(1, usable_cores() // processes_here))
    # For models with dropout: each rank drops different units.
    torch.manual_seed(hash((job.config.seed, rank)))


def _start_state(
    model: nn.Module, config: TrainConfig, recipe: Recipe, device: torch.device, dtype: torch.dtype, share_muon: bool
) -> tuple[nn.Module, TrainState]:
    """The model in DDP, on the device, and the state before the first step. A collective."""
    if device.type == "cpu" and config.fast_convolutions:
        use_fast_convolutions(model)
    with no_dynamo():
        # Where CUDA graphs take the steps, DDP is not used; whether they can is known only when the images are placed.
        ddp_model = _wrap_model(model, device, config.gradients == "bf16")
        optimizers = build_optimizers(model, recipe, config.global_batch, dtype, share_muon)
    state = TrainState(model, optimizers, Sums(device))
    _warm_up(state, ddp_model, config.image_size, device, dtype)
    return ddp_model, state


def _shares_muon(device: torch.device, world_size: int, on_one_machine: bool) -> bool:
    """Whether the ranks divide Muon's work, and send each other the results. A collective."""
    # Ranks that round differently would drift apart if each computed all of Muon's updates.
    are_alike = len(set(from_all_ranks(processor_name(device)))) == 1
    return not are_alike or (device.type == "cpu" and on_one_machine and world_size > 1)


def _uses_graphs(config: TrainConfig, model: nn.Module, feed: Feed, suitable: bool) -> bool:
    """Whether CUDA graphs take the steps. A collective.

    Not between machines, where DDP is faster: it sends gradients during the backward pass. Nor with collectives within
    the optimizer.
    """
    parameters = list(model.parameters())
    suitable &= config.graphs == "auto" and isinstance(feed, MemoryFeed) and parameters[0].is_cuda
    # Gradients are averaged in one buffer of this type.
    suitable &= all(parameter.dtype == torch.float32 for parameter in parameters)
    return all(from_all_ranks(suitable))


def _wrap_model(model: nn.Module, device: torch.device, bf16_gradients: bool) -> nn.Module:
    """Move the model to the device and, if there are several ranks, wrap it in DDP, which averages gradients."""
    # Each rank keeps its own batch statistics, averaged before evaluation: no broadcast on every step.
    options = {SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
    wrapped: nn.Module = ray.train.torch.prepare_model(model, move_to_device=device, parallel_strategy_kwargs=options)
    if bf16_gradients and isinstance(wrapped, nn.parallel.DistributedDataParallel):
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def _warm_up(
    state: TrainState, ddp_model: nn.Module, image_size: int, device: torch.device, dtype: torch.dtype
) -> None:
    def forward_backward() -> None:
        images = torch.zeros(2, 3, image_size, image_size, device=device, dtype=dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = ddp_model(images.to(memory_format=torch.channels_last))
        labels = torch.zeros(2, dtype=torch.int64, device=device)
        F.cross_entropy(logits.float(), labels, reduction="sum").backward()
        state.optimizers.zero_grad()

    warm_up_reducer(state.model, forward_backward)


def _make_feed(inputs: Inputs, config: TrainConfig, rank: int, world_size: int, device: torch.device) -> Feed:
    """The feed of this rank. The model and its optimizer must be on the device already. A collective."""
    fits = fits_on(device, inputs.dataset)
    without_room = from_all_ranks(fits).count(False)
    if rank == 0 and without_room:
        print_note(
            f"the images stay in host memory on {without_room} of {world_size} worker(s): they would take more than "
            "half of the GPU's free memory."
        )
    return make_feed(inputs.dataset, config, rank, world_size, device, fits)


def _make_control(
    job: Job, rank: int, device: torch.device, saver: Saver, feed: Feed, arrive: Callable[[], None]
) -> Control:
    # Under Ray, one rank's request is enough; under torchrun, a signal may reach any of the processes.
    stop_requested = job.stop_requested if rank == 0 or job.is_local else None
    return Control(
        device,
        job.config.checkpoint_every_seconds,
        stop_requested,
        lambda: saver.failure is not None or feed.failure is not None,
        arrive,
    )


def _record_settings(worker: Worker, model: str) -> None:
    """Write the settings and the choices made from them to the run folder."""
    run, config, device = worker.run, worker.config, worker.device
    worker.saver.write_reliably(lambda: write_config(run, config.to_dict()))
    chosen = {
        "model": model,
        "device": device.type,
        "device_name": processor_name(device),
        "precision": worker.precision,
        "tf32": worker.precision == "fp32" and has_tf32(device),
        "cuda_graphs": worker.graphed,
        "fast_convolutions": device.type == "cpu" and config.fast_convolutions,
        "world_size": worker.world_size,
        "ingest": config.ingest,
        "images": worker.fingerprint["images"],
        "images_on": worker.feed.images_on,
        "global_batch_size": config.global_batch,
    }
    worker.saver.write_newest(CHOSEN_FILE, lambda: write_chosen(run, chosen))


def _resume(worker: Worker, state: TrainState, name: str, saved: checkpoint.State) -> None:
    # Checkpoints of older versions have no digest.
    if worker.fingerprint | saved["fingerprint"] != worker.fingerprint:
        raise RefusedError(f"{worker.run} was trained on other images: use the --data that it was started with.")
    try:
        state.restore(saved, worker.rank)
    except ValueError as error:
        raise RefusedError(f"{worker.run / name} cannot be resumed: {error}.") from error
    if worker.rank == 0:
        print(f"Resumed at step {state.step} from {name}, {worker.world_size} worker(s)", flush=True)


def _require_resumable(job: Job, inputs: Inputs, start: Start) -> None:
    config = job.config
    if start.newest and config.precision not in ("auto", start.precision):
        raise RefusedError(f"--precision {config.precision}: this run uses {start.precision}; omit the flag to resume.")
    if config.init_from and not (start.newest or inputs.pretrained):
        raise RefusedError(
            f"no checkpoint of {config.run_name or 'the run'} is complete: start a new run with another --run-name."
        )
