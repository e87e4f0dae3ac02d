"""Keep a spare process for each worker, so that a restart does not wait for new processes to import torch.

Ray Train restarts all workers after a failure. Some time after a worker has started, it asks Ray for one more process
with its runtime environment. That process runs `load` (see `ray_variables.WORKER_SETUP`), and waits. Ray gives it to
the first worker that starts on its node; that worker asks for the next one.

Ray's node process (raylet) has a request for this, but no function in Python that sends it:
https://github.com/ray-project/ray/pull/48677. Tested with Ray 2.60.0.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import ray

from vgg_ddp.compat.fallback import log_fallback
from vgg_ddp.machine.code import Code
from vgg_ddp.machine.limits import available_memory_bytes

logger = logging.getLogger(__name__)

# Not while the first steps are taken, nor in short runs.
SECONDS_BEFORE_START = 10.0
# A spare process takes 0.4 GB. If there is less than this for each worker, training may need it.
MIN_BYTES_PER_WORKER = 2 * 2**30
# Ray may end an idle process after this time, in seconds; when the job ends, it always does.
KEPT_FOR = 30 * 24 * 3600
TIMEOUT_SECONDS = 10.0

GRPC, GENERATED = "ray._private.grpc_utils", "ray.core.generated"


def load() -> None:
    """Import what a worker needs; Ray calls this in each process of a worker, before it has a rank or a GPU."""
    try:
        import_module("vgg_ddp.worker.train")
    except Exception as error:
        # The worker imports it again: the same error then reaches Ray Train, and the user.
        logger.debug("A worker's modules cannot be imported: %s", error)
    # The code that the worker will be compared by, even if someone edits it until then.
    Code.of_this_process()


@contextmanager
def spare_kept(wanted: bool, workers_here: int) -> Iterator[None]:
    """Start a spare process for this worker some time later, if this context has not ended by then.

    Args:
        wanted: whether to start one.
        workers_here: number of workers on this machine.
    """
    if not wanted:
        yield
        return
    timer = threading.Timer(SECONDS_BEFORE_START, _start_if_it_fits, [workers_here])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _start_if_it_fits(workers_here: int) -> None:
    try:
        if available_memory_bytes() >= workers_here * MIN_BYTES_PER_WORKER:
            start_spare()
    except Exception as error:
        # In a thread, whose traceback would be printed. For example, Ray may not answer right now.
        logger.debug("No spare process was started: %s", error)


def start_spare() -> None:
    """From an actor, start a process that waits for the next actor with its job, node, and runtime environment."""
    try:
        messages, services = (import_module(f"{GENERATED}.node_manager_pb2{suffix}") for suffix in ("", "_grpc"))
        context = ray.get_runtime_context()
        request = messages.PrestartWorkersRequest(
            language=import_module(f"{GENERATED}.common_pb2").PYTHON,
            job_id=bytes.fromhex(context.get_job_id()),
            runtime_env_info={"serialized_runtime_env": context.get_runtime_env_string()},
            keep_alive_duration_secs=KEPT_FOR,
            num_workers=1,
        )
        (node,) = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
        address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        with import_module(GRPC).init_grpc_channel(address) as channel:
            services.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=TIMEOUT_SECONDS)
    except (ImportError, AttributeError, TypeError, ValueError, KeyError) as error:
        log_fallback(f"{GENERATED}.node_manager_pb2 ({error})", "training continues some seconds later after a failure")
