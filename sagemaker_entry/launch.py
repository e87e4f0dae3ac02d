"""Runs in every container of a SageMaker job, as PID 1: `exec python sagemaker_entry/launch.py`.

The head host starts Ray and `python ray_app/main.py` with the job's hyperparameters as flags. The other hosts join Ray
and wait for the head's verdict. All hosts exit with the same code:

| exit code | cause |
| --- | --- |
| 0 | finished; the model is in /opt/ml/model |
| 1 | training failed; the failure file starts with the first exception |
| 2 | invalid input: a hyperparameter, a channel, missing storage |
| 10 | a host or a GPU was missing at the join deadline |
| 11 | Ray stopped on a host |
| 12 | a host stopped responding while the job ran |
| 13 | the head stopped responding before it gave a verdict (exit code on the other hosts) |
| 14 | main.py was killed by a signal, for example because memory ran out |
| 15 | the results could not be copied to /opt/ml/model |
| 16 | internal error of this program |
| 143 | stopped by SIGTERM, after a checkpoint |
"""

import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sagemaker_entry.container.entry import Entry
from sagemaker_entry.container.head import lead
from sagemaker_entry.container.hosts import read_cluster
from sagemaker_entry.container.job import Paths, derive_token
from sagemaker_entry.container.outcome import ENTRY_FAILED, FINISHED, JobError, Redactor, Verdict, write_failure
from sagemaker_entry.container.peer import follow
from sagemaker_entry.contract import SECRET_FILE

# How long Ray's processes may take to exit before they are killed. On the head they would take longer, since they wait
# for each other, but by then everything has been saved.
END_SECONDS = 3.0


def run(entry: Entry, paths: Paths) -> Verdict:
    """Run this host's part of the job; every error becomes a verdict."""
    try:
        secret_file = Path(__file__).resolve().with_name(SECRET_FILE)
        token = derive_token(secret_file, entry.job_name, len(entry.cluster.hosts))
        entry.prepare_environment(token)
        return lead(entry, paths, token) if entry.cluster.is_head else follow(entry, token)
    except JobError as error:
        return error.verdict
    except Exception:
        return Verdict(ENTRY_FAILED, traceback.format_exc(limit=-3))


def main() -> int:
    paths, redact = Paths(), Redactor(os.environ)
    cluster = read_cluster(paths.config / "resourceconfig.json")
    entry = Entry(cluster, redact, os.environ.get("TRAINING_JOB_NAME", "job"))
    verdict = run(entry, paths)
    verdict = Verdict(verdict.code, redact(verdict.reason))
    if verdict.code != FINISHED:
        write_failure(paths.failure, verdict)
        entry.log(f"failed: {verdict.reason}")
    entry.processes.end_all(END_SECONDS)
    entry.log(f"exit code {verdict.code}")
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
