"""Copies the source code that a job needs, and no other files of the repository."""

import secrets
import shutil
from pathlib import Path

from sagemaker_entry.contract import SECRET_FILE

ROOT = Path(__file__).resolve().parents[2]
# An allowlist, so that no secrets, data or virtual environments are uploaded.
FOLDERS = ("ray_app", "sagemaker_entry")
IGNORED = ("__pycache__", "*.pyc", ".*", SECRET_FILE)


def stage(target: Path) -> Path:
    """Copy the source code to an empty folder and add a new secret for the job's hosts; return the folder."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns(*IGNORED))
    (target / "sagemaker_entry" / SECRET_FILE).write_bytes(secrets.token_bytes(32))
    return target
