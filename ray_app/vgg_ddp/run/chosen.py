"""chosen.json: what rank 0 chose where the settings in config.json leave a choice, and the software versions."""

import json
import platform
from importlib.metadata import version
from typing import Any

from vgg_ddp.run.notes import print_note_once, reason
from vgg_ddp.run.storage import Folder

CHOSEN_FILE = "chosen.json"
PACKAGES = ("torch", "ray")


def write_chosen(run: Folder, chosen: dict[str, object]) -> None:
    """Write chosen.json, with the versions of the software; a resumed run replaces it."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    run.write(CHOSEN_FILE, (json.dumps(chosen | {"versions": versions}, indent=2) + "\n").encode())


def read_chosen(run: Folder) -> dict[str, str]:
    """The content of chosen.json, flattened, with strings as values: {"precision": "bf16", "versions.torch": "2.14.1"}.

    Empty for a run without the file (one that has not started, or one of an older version of this program), or whose
    file cannot be read; a NOTE then says so once.
    """
    try:
        chosen: dict[str, Any] = json.loads(run.read(CHOSEN_FILE))
        versions = {f"versions.{name}": number for name, number in chosen.pop("versions").items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        print_note_once(f"{run / CHOSEN_FILE} cannot be read: {reason(error)}")
        return {}
    return {name: str(value) for name, value in (chosen | versions).items()}


def format_chosen(chosen: dict[str, str]) -> str:
    """One line for the terminal, from the result of `read_chosen`."""
    count = int(chosen["world_size"])
    kind = "GPU" if chosen["device"] == "cuda" else "CPU"
    # Older versions did not record all of these.
    names = {"tf32": "TF32 products", "cuda_graphs": "CUDA graphs", "fast_convolutions": "fast convolutions"}
    extras = [text for name, text in names.items() if chosen.get(name) == "True"]
    return (
        f"{count} {kind} worker{'s'[: count != 1]} in {chosen['precision']}"
        f"{' with ' * bool(extras)}{' and '.join(extras)}, global batch "
        f"{chosen['global_batch_size']}, on {chosen['device_name']}"
    )
