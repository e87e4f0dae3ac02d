"""What runs in every container of a SageMaker job, as PID 1: `exec python sagemaker_entry/launch.py`.

On the head host it starts Ray and `python ray_app/main.py` with the job's hyperparameters as flags; the other hosts
join Ray and wait for the head's verdict, which all hosts end with.

| exit code | cause |
| --- | --- |
| 0 | finished; the model is in /opt/ml/model |
| 1 | training failed; the failure file begins with the first exception |
| 2 | the input cannot be used: a hyperparameter, a channel, missing storage |
| 10 | a host, or a GPU, was missing when the time to join was over |
| 11 | Ray stopped on a host |
| 12 | a host fell silent while the job ran |
| 13 | the head fell silent before it gave a verdict (exit code of the other hosts) |
| 14 | main.py was ended by a signal, for example for want of memory |
| 15 | the results could not be copied to /opt/ml/model |
| 16 | this program failed |
| 143 | stopped by SIGTERM, after a checkpoint |
"""

import os
import sys
import traceback
from pathlib import Path

from entry import Entry
from follower import follow
from head import lead
from hosts import read_cluster
from job import SECRET_FILE, Paths, derive_token
from outcome import ENTRY_FAILED, FINISHED, JobError, Redactor, Verdict, write_failure

# What Ray's processes get to end by themselves. On a head they take longer, since they wait for each other; but all
# that matters is saved by now.
END_SECONDS = 3.0


def run(entry: Entry, paths: Paths) -> Verdict:
    """This host's part of the job; whatever happens becomes a verdict."""
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
