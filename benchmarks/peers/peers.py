"""This program compared with Ray's tutorial, Lightning, Accelerate, and torchrun: same images, batch, and VGG11.

    python -m benchmarks.peers.peers --peers-python PATH/TO/peers-venv/bin/python --rounds 3

Each peer is written as its documentation shows, in the script beside this file; the docstring there names the page.
All train on CPUs in fp32, their default, with Adam(lr=0.001), in 32-pixel images that are decoded beforehand and
transformed in the training processes (`DataLoader(num_workers=0)`), as on those pages. This program decodes its images
itself. It runs three times: with `--recipe classic --precision fp32`, with its defaults, and with its defaults under
torchrun, without a Ray cluster.

The programs take turns, and medians are printed:

- images/s: training in the second epoch;
- first step: seconds from the command until every process has taken a step;
- memory: the highest sum over all processes of the program, Ray's included (PSS);
- accuracy: on the test images, after two epochs, by the weights that the program has saved;
- lines: code of the user's script without blank lines, comments, and docstrings, and without the images, the
  transforms, and the model, which all peers import. This program needs only a command.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.measure import first_step, images_per_second, lines_of_code, read_steps, watch
from benchmarks.peers.table import Measured, cells, table, where_behind
from benchmarks.program import MAIN, ROOT, torchrun_command
from benchmarks.record import new_parser, write_json
from vgg_ddp.flags import UsageError, quit_with_usage_error

HERE = Path(__file__).parent
EPOCHS = 2
DATA_FOLDER = str(Path("data").resolve())
PACKAGES = ("torch", "torchvision", "ray", "lightning", "accelerate")
# The flags of each run of this program.
OURS = {
    "this program, classic, fp32": ("--recipe", "classic", "--precision", "fp32"),
    "this program": (),
    "this program, torchrun": (),
}
# The arguments of Python that start each peer with a number of processes.
PEERS: dict[str, Callable[[int], list[object]]] = {
    "Ray tutorial": lambda _: [HERE / "ray_script.py"],
    "Lightning": lambda _: [HERE / "lightning_script.py"],
    "Accelerate": lambda processes: [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", processes, "--num_machines", 1),
        *("--mixed_precision", "no", "--dynamo_backend", "no", HERE / "accelerate_script.py"),
    ],
    "torchrun": lambda processes: [
        *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", HERE / "torchrun_script.py"),
    ],
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--peers-python", default=sys.executable, help="Python of the environment with the peers")
    parser.add_argument(
        "--programs", nargs="+", default=[*OURS, *PEERS], help="by the names in the table; default: all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample", help="as in main.py; default: %(default)s")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256, help="global; default: %(default)s")
    options = parser.parse_args()
    # Terminating the benchmark must end the program that runs, as interrupting it does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        unknown = set(options.programs) - {*OURS, *PEERS}
        if unknown:
            raise UsageError(f"--programs {', '.join(unknown)}: expected some of {', '.join([*OURS, *PEERS])}.")
        # The programs run in other folders.
        options.peers_python = os.path.abspath(shutil.which(options.peers_python) or options.peers_python)
        versions = require_packages(options.peers_python)
        results = measure_all(options)
    except UsageError as error:
        quit_with_usage_error(error)
    lines = {name: count_lines(name) for name in results}
    print(
        f"\nmedian of {options.rounds}, {options.data}, global batch {options.batch_size}\n\n{table(results, lines)}\n"
    )
    print_where_behind(results)
    runs = {name: [asdict(run) for run in measured] for name, measured in results.items()}
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    write_json(options.json, {"settings": settings, "versions": versions, "lines": lines, "runs": runs})


def require_packages(python: str) -> dict[str, str]:
    """The versions of the peers' packages in an environment.

    Raises:
        UsageError: if one is missing.
    """
    code = (
        "import importlib.metadata as m, importlib.util as u, json\n"
        f"print(json.dumps({{p: m.version(p) if u.find_spec(p) else None for p in {PACKAGES}}}))"
    )
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"--peers-python {python}: expected a Python interpreter ({error}).") from error
    versions: dict[str, str] = json.loads(found)
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        raise UsageError(
            f"--peers-python {python}: {', '.join(missing)} not installed there; benchmarks/README.md says how to make "
            "an environment for the peers."
        )
    return versions


def measure_all(options: Any) -> dict[str, list[Measured]]:
    """The runs of each program, by name.

    Raises:
        UsageError: if the data cannot be read.
    """
    import numpy as np

    from vgg_ddp.data.dataset import load_dataset
    from vgg_ddp.data.source import find_source

    data = options.data if options.data in ("sample", "cifar10") else str(Path(options.data).resolve())
    dataset = load_dataset(find_source(data, DATA_FOLDER), 32)
    results: dict[str, list[Measured]] = {name: [] for name in options.programs}
    with tempfile.TemporaryDirectory() as images:
        np.save(f"{images}/train_images.npy", dataset.train.images)
        np.save(f"{images}/train_labels.npy", dataset.train.labels)
        for number in range(options.rounds):
            for name in options.programs:
                with tempfile.TemporaryDirectory() as output:
                    if name in OURS:
                        run = run_ours(name, data, options, Path(output))
                    else:
                        run = run_peer(name, dataset, options, images, Path(output))
                results[name].append(run)
                print(f"round {number + 1}: {name:<28} {'  '.join(cells([run]))}", flush=True)
    return results


def run_ours(name: str, data: str, options: Any, output: Path) -> Measured:
    """A run of main.py."""
    from vgg_ddp.run.files import STARTUP_FILE, read_metrics
    from vgg_ddp.run.storage import Folder

    start: list[object] = [sys.executable, MAIN, "--num-workers", options.num_workers]
    if name.endswith("torchrun"):
        start = [*torchrun_command(options.num_workers), MAIN]
    flags: list[object] = ["--device", "cpu", "--data", data, "--data-dir", DATA_FOLDER, "--epochs", EPOCHS]
    flags += ["--batch-size", options.batch_size, "--storage-path", output, "--run-name", "run", *OURS[name]]
    watched = watch([*start, *flags], os.environ, output)
    last = read_metrics(Folder.at(f"{output}/run"))[-1]
    startup = json.loads((output / "run" / STARTUP_FILE).read_text())
    return Measured(
        last["images_per_second"],
        startup["first step"] - watched.started,
        watched.peak_memory_bytes / 2**20,
        last["test_accuracy"],
        watched.memory,
    )


def run_peer(name: str, dataset: Any, options: Any, images: str, output: Path) -> Measured:
    """A run of a peer's script, whose saved weights are tested afterwards."""
    from benchmarks.peers.task import Task
    from benchmarks.peers.weights import accuracy_on

    processes, classes = options.num_workers, len(dataset.class_names)
    task = Task(images, str(output), classes, processes, options.batch_size // processes, EPOCHS)
    path = os.pathsep.join([str(ROOT), str(ROOT / "ray_app")])
    environment = os.environ | task.environment() | {"PYTHONPATH": path}
    watched = watch([options.peers_python, *PEERS[name](processes)], environment, output)
    steps = read_steps(output)
    return Measured(
        images_per_second(steps, EPOCHS, dataset.num_train, options.batch_size),
        first_step(steps) - watched.started,
        watched.peak_memory_bytes / 2**20,
        accuracy_on(output, dataset.test, classes),
        watched.memory,
    )


def count_lines(name: str) -> int:
    """Lines of code that a user of a program writes."""
    return 0 if name in OURS else lines_of_code(next(HERE.glob(f"{name.split()[0].lower()}_script.py")).read_text())


def print_where_behind(results: dict[str, list[Measured]]) -> None:
    """Print the columns in which each run of this program is not ahead of each peer."""
    for ours in filter(results.__contains__, OURS):
        for peer in filter(results.__contains__, PEERS):
            if behind := where_behind(results[ours], results[peer]):
                print(f"{ours} is behind {peer} in: {', '.join(behind)}")


if __name__ == "__main__":
    main()
