"""Copy a run's results to where SageMaker collects them: python outputs.py STORAGE_PATH RUN_NAME [finished].

/opt/ml/output/data gets the run's settings, metrics and curves. A finished run also fills /opt/ml/model with what
serving needs: the weights, and `code/` with the script that a PyTorch inference container looks for there.
"""

import shutil
import sys
from pathlib import Path

from pyarrow import fs

from job import Paths

SOURCE = Path(__file__).resolve().parent.parent
DATA_FILES = (
    "config.json",
    "metrics.csv",
    "curves.png",
    "startup.json",
    "events.out.tfevents",
    "profile.txt",
    "trace.json.gz",
)
MODEL_FILES = ("model.safetensors", "config.json", "metrics.csv")
# All that the serving script needs of the training code: these import nothing but torch and numpy.
CODE_FILES = ("__init__.py", "model.py", "convolution.py", "winograd.py", "batches.py")


def copy_files(filesystem: fs.FileSystem, folder: str, names: tuple[str, ...], target: Path) -> list[str]:
    """Copy those of the files that exist; gives the names of the others."""
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
    """Copy the serving script and what it imports."""
    package = target / "vgg_ddp"
    package.mkdir(parents=True, exist_ok=True)
    shutil.copy(SOURCE / "sagemaker_entry" / "serve" / "inference.py", target)
    for name in CODE_FILES:
        shutil.copy(SOURCE / "ray_app" / "vgg_ddp" / name, package)


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
            print(f"error: the run folder {storage_path}/{run_name} lacks {', '.join(missing)}", file=sys.stderr)
            return 1
        copy_code(root / "model" / "code")
    return 0


if __name__ == "__main__":
    sys.exit(main())
