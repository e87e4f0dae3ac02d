"""Runs in every container of a SageMaker job, as PID 1: `exec python sagemaker_entry/launch.py`.

The head host starts Ray and `python ray_app/main.py` with the job's hyperparameters as flags. The other hosts join Ray
and wait for the head's verdict. All hosts exit with the same code:

| exit code | cause |
| --- | --- |
| 0 | finished; the model is in /opt/ml/model |
| 1 | training failed; the failure file starts with the first exception |
| 2 | invalid input: a hyperparameter, a channel, missing data or storage |
| 10 | a host or a GPU was missing at the join deadline |
| 11 | Ray stopped on a host |
| 12 | a host stopped responding while the job ran |
| 13 | the head stopped responding before it gave a verdict (exit code on the other hosts) |
| 14 | main.py was killed by a signal, for example because memory ran out |
| 15 | the results could not be copied to /opt/ml/model |
| 16 | internal error of this program |
| 17 | the image's Python is not supported, or packages could not be installed |
| 143 | stopped by SIGTERM, after a checkpoint |
"""

import os
import sys

# This file must also run on older versions, to name them.
OLDEST_PYTHON = (3, 11)
UNSUPPORTED = 17
FAILURE_FILE = "/opt/ml/output/failure"


def main() -> int:
    if sys.version_info < OLDEST_PYTHON:
        given, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        reason = f"the image has Python {given}: expected {needed} or later; use another --image"
        print("error: " + reason, file=sys.stderr)
        with open(FAILURE_FILE, "w") as file:
            file.write(reason)
        return UNSUPPORTED
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from sagemaker_entry.container.run import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
