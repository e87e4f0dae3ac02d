"""The source code that travels to the job: what it needs, and nothing else that lies around in the repository."""

import secrets
import shutil
from pathlib import Path

from job import SECRET_FILE

ROOT = Path(__file__).resolve().parent.parent
# Named, rather than all but an ignore list: no file of secrets, data or environment can slip through.
FOLDERS = ("ray_app", "sagemaker_entry")
IGNORED = ("__pycache__", "*.pyc", ".*", SECRET_FILE)


def stage(target: Path) -> Path:
    """Copy the source code to an empty folder, with the secret of this job's hosts; gives the folder."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns(*IGNORED))
    # Older images look for it here, and only here.
    (target / "requirements.txt").write_text("-r sagemaker_entry/requirements.txt\n")
    (target / "sagemaker_entry" / SECRET_FILE).write_bytes(secrets.token_bytes(32))
    return target
