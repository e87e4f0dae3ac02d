"""This host's part of a job, from its start to its exit code."""

import os
import traceback
from pathlib import Path

from sagemaker_entry.container.entry import Entry
from sagemaker_entry.container.head import lead
from sagemaker_entry.container.hosts import read_cluster
from sagemaker_entry.container.job import Paths, derive_token
from sagemaker_entry.container.outcome import ENTRY_FAILED, FINISHED, JobError, Redactor, Verdict, write_failure
from sagemaker_entry.container.peer import follow
from sagemaker_entry.contract import SECRET_FILE

ROOT = Path(__file__).resolve().parents[2]
# How long Ray's processes may take to exit before they are killed. On the head they would take longer, since they wait
# for each other, but by then everything has been saved.
END_SECONDS = 3.0


def run() -> int:
    """Run this host's part of the job, write the failure file, and return the exit code."""
    paths, redact = Paths(), Redactor(os.environ)
    cluster = read_cluster(paths.config / "resourceconfig.json")
    entry = Entry(cluster, redact, os.environ.get("TRAINING_JOB_NAME", "job"))
    verdict = _judge(entry, paths)
    verdict = Verdict(verdict.code, redact(verdict.reason))
    if verdict.code != FINISHED:
        write_failure(paths.failure, verdict)
        entry.log(f"failed: {verdict.reason}")
    entry.processes.end_all(END_SECONDS)
    entry.log(f"exit code {verdict.code}")
    return verdict.code


def _judge(entry: Entry, paths: Paths) -> Verdict:
    """Lead the job or follow its head; every error becomes a verdict."""
    try:
        secret_file = ROOT / "sagemaker_entry" / SECRET_FILE
        token = derive_token(secret_file, entry.job_name, len(entry.cluster.hosts))
        entry.prepare_environment(token)
        return lead(entry, paths, token) if entry.cluster.is_head else follow(entry, token)
    except JobError as error:
        return error.verdict
    except Exception:
        return Verdict(ENTRY_FAILED, traceback.format_exc(limit=-3))
