#!/usr/bin/env bash
# Train on a cluster: cluster/submit.sh CLUSTER_FILE [flags of ray_app/main.py]
# Ships ray_app as a Ray job through an SSH tunnel, shows what it prints, and ends with its exit code. The cluster need
# not be started anew after the code has changed.
set -euo pipefail

usage() { echo "submit.sh: error: $1" >&2; exit 2; }

[ $# -ge 1 ] || usage "expected a cluster file, such as cluster/local.yaml, then flags of ray_app/main.py"
[ -f "$1" ] || usage "$1: no such cluster file"
[ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] ||
  usage "no token in ~/.ray/auth_token: make one with ray get-auth-token --generate, then run ray up"
cluster_file=$(realpath "$1")
shift
cd "$(dirname "$0")/.."

export RAY_AUTH_MODE=token
# SSH may keep a forwarded port for a while after the tunnel is closed: so one that no other command will want.
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
job=vgg-$(date +%Y%m%d-%H%M%S)-$$
tunnel_log=$(mktemp)
shipped=$(mktemp -d)
setsid ray dashboard "$cluster_file" --port "$port" > "$tunnel_log" 2>&1 < /dev/null &
tunnel=$!
trap 'kill -- -$tunnel 2> /dev/null || true; rm -rf "$tunnel_log" "$shipped"' EXIT
how_to_go_on() {
  echo "To see its output: ray exec $cluster_file 'ray job logs --follow $job'" >&2
  echo "To end it: ray exec $cluster_file 'ray job stop $job'" >&2
}
trap 'echo "The job goes on." >&2; how_to_go_on; exit 130' INT TERM

until (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
  if ! kill -0 $tunnel 2> /dev/null; then
    cat "$tunnel_log" >&2
    echo "submit.sh: error: no tunnel to the head node of $cluster_file: is the cluster up?" >&2
    exit 1
  fi
  sleep 0.2
done

address=http://127.0.0.1:$port
# Not what else may lie in this folder: images, runs, weights.
cp -r ray_app "$shipped"
ray job submit --address "$address" --submission-id "$job" --working-dir "$shipped" -- \
  python ray_app/main.py "$@" || true
# The ray command ends with 1 however the job failed, and with 0 if it was stopped.
if code=$(python -c '
import sys
from ray.job_submission import JobStatus, JobSubmissionClient
job = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
if not job.status.is_terminal():
    sys.exit(1)
ends = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}
code = ends.get(job.status, job.driver_exit_code or 1)
# Below 0: the signal that killed the driver, as shells count it.
print(code if code >= 0 else 128 - code)
' "$address" "$job" 2> /dev/null); then
  exit "$code"
fi
echo "submit.sh: error: no word of job $job; if it was submitted, it goes on." >&2
how_to_go_on
exit 1
