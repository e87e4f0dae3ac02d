"""Copies a run's results to where SageMaker collects them.

python -m sagemaker_entry.container.outputs STORAGE_PATH RUN_NAME [finished]

The run's settings, metrics and curves go to /opt/ml/output/data. After a finished run, /opt/ml/model gets what serving
needs: the weights, and `code/` with the scripts that the inference containers load.
"""

import shutil
import sys
from pathlib import Path

from pyarrow import fs

from sagemaker_entry.container.job import Paths

ROOT = Path(__file__).resolve().parents[2]
DATA_FILES = (
    "config.json",
    "chosen.json",
    "metrics.csv",
    "curves.png",
    "startup.json",
    "events.out.tfevents",
    "profile.txt",
    "trace.json.gz",
)
MODEL_FILES = ("model.safetensors", "config.json", "metrics.csv")
# The only parts of vgg_ddp that the serving scripts need. They import nothing but torch, numpy and Pillow. Without the
# package's __init__.py, which is for training.
CODE = (
    "model/*.py",
    *(f"data/{name}.py" for name in ("__init__", "decode", "image_files", "opaque")),
    *(f"serving/{name}.py" for name in ("__init__", "contract", "network")),
)


def copy_files(filesystem: fs.FileSystem, folder: str, names: tuple[str, ...], target: Path) -> list[str]:
    """Copy the files that exist, and return the names of the missing ones."""
    target.mkdir(parents=True, exist_ok=True)
    missing = []
    for name in names:
        try:
            with filesystem.open_input_stream(f"{folder}/{name}", compression=None) as source:
                (target / name).write_bytes(source.read())
        except FileNotFoundError:
            missing.append(name)
    return missing


def copy_code(target: Path) -> None:
    """Copy the serving scripts and the modules that they import."""
    target.mkdir(parents=True, exist_ok=True)
    for script in (ROOT / "sagemaker_entry" / "container" / "serve").glob("*.py"):
        shutil.copy(script, target)
    source = ROOT / "ray_app"
    for file in (file for pattern in CODE for file in source.glob(f"vgg_ddp/{pattern}")):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def main() -> int:
    storage_path, run_name, *finished = sys.argv[1:]
    root = Paths().root
    if "://" in storage_path:
        filesystem, folder = fs.FileSystem.from_uri(f"{storage_path.rstrip('/')}/{run_name}")
    else:
        filesystem, folder = fs.LocalFileSystem(), str(Path(storage_path, run_name))
    copy_files(filesystem, folder, DATA_FILES, root / "output" / "data")
    if finished:
        missing = copy_files(filesystem, folder, MODEL_FILES, root / "model")
        if missing:
            print(f"error: the run folder {storage_path}/{run_name} has no {', '.join(missing)}", file=sys.stderr)
            return 1
        copy_code(root / "model" / "code")
    return 0


if __name__ == "__main__":
    sys.exit(main())
