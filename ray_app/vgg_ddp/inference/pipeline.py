"""The pipeline of Ray Data: chunks of images, decoded, and classified by a pool of actors.

On CPUs, the actors decode as well: all cores are busy either way, and the images stay where they are. GPUs would wait
for that, so tasks on the CPUs of all machines decode for them.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from pyarrow import compute
from ray.data import ActorPoolStrategy

from vgg_ddp.compat.ray_data import set_up_context
from vgg_ddp.flags import UsageError
from vgg_ddp.inference.image_set import ImageSet, images_per_chunk
from vgg_ddp.inference.predictor import Predictor, ReadingPredictor
from vgg_ddp.inference.reading import REFUSED, Batch, Reader

# Actors that may die while they start, as on a machine that is taken away.
MAX_FAILED_STARTS = 3


@dataclass(frozen=True)
class Workers:
    """The number of actors; each has a GPU, or a CPU.

    Attributes:
        device: the value of --device, for actors that cannot use their GPU.
    """

    count: int
    use_gpu: bool
    device: str


def choose_workers(device: str, num_workers: int | None, maximum: int, own_cluster: bool) -> Workers:
    """Choose GPUs if --device gpu requires them or auto allows it, and by default all of them; otherwise CPUs.

    Not more than `maximum`.

    Raises:
        UsageError: if the cluster has fewer.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    use_gpu = device != "cpu" and gpus >= (num_workers or 1)
    if use_gpu and own_cluster:
        # The actors of an existing cluster check for themselves. Importing torch takes seconds: not without GPUs.
        from vgg_ddp.machine.gpus import can_use_gpus

        use_gpu = can_use_gpus(device, num_workers or gpus, "Classifying")
    elif device == "auto" and 0 < gpus < (num_workers or 1):
        print(
            f"NOTE: {gpus} GPU(s) for {num_workers} workers: classifying on CPUs. To use GPUs: --num-workers {gpus}.",
            flush=True,
        )
    available, kind = (gpus, "GPU") if use_gpu or device == "gpu" else (cpus, "CPU")
    if available < (num_workers or 1):
        flags = f"--device {device}" + (f" --num-workers {num_workers}" if num_workers else "")
        raise UsageError(f"{flags}: Ray sees {available} {kind}{'s'[: available != 1]}; use at most that many workers.")
    return Workers(min(num_workers or available, maximum), use_gpu, device)


def classify(
    images: ImageSet, image_size: int, model: bytes, location: str, tta: bool, workers: Workers
) -> Iterator[pa.Table]:
    """Classify the images: the rows of the output, in their order; `location` is that of the model.

    Raises:
        UsageError: if a Parquet file, the folder, or the model cannot be read.
    """
    set_up_context(verbose=False).max_consecutive_actor_init_deaths = MAX_FAILED_STARTS
    reader = Reader(images.folder, images.columns, image_size)
    predictor = (ray.put(model), location, workers.device if workers.use_gpu else "cpu", tta)
    pool: dict[str, Any] = {
        "compute": ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=2),
        # By default, actors with GPUs would also take CPUs, and tasks that decode might never get one.
        **({"num_gpus": 1, "num_cpus": 0} if workers.use_gpu else {"num_cpus": 1}),
    }
    # Pickled, because Arrow has neither a type for them nor for file names that are not UTF-8.
    chunks = ray.data.from_items(
        [pickle.dumps(chunk) for chunk in images.chunks], override_num_blocks=len(images.chunks)
    )
    if workers.use_gpu:
        decoded = chunks.map_batches(_decode, batch_size=1, fn_kwargs={"reader": reader})
        size = images_per_chunk(image_size)
        rows = decoded.map_batches(Predictor, batch_size=size, fn_constructor_args=predictor, **pool)
    else:
        arguments = (reader, *predictor)
        rows = chunks.map_batches(ReadingPredictor, batch_size=1, fn_constructor_args=arguments, **pool)
    for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        refused = table.filter(compute.equal(table["row"], REFUSED))
        if len(refused):
            raise UsageError(refused["error"][0].as_py())
        yield table


def _decode(batch: dict[str, Any], reader: Reader) -> Iterator[Batch]:
    yield from reader.read(pickle.loads(batch["item"][0]))
