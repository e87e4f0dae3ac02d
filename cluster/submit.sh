#!/usr/bin/env bash
# Train on a cluster: cluster/submit.sh CLUSTER_FILE [flags of ray_app/main.py]
# Tune on a cluster:  cluster/submit.sh CLUSTER_FILE tune.py SPACE ... [flags of ray_app/tune.py]
# Ships ray_app as a Ray job through an SSH tunnel, shows its output, and exits with its exit code. After a change to the
# code, just submit again: the cluster does not need a restart.
set -euo pipefail

usage() { echo "submit.sh: error: $1" >&2; exit 2; }

[ $# -ge 1 ] || usage "expected a cluster file, such as cluster/local.yaml, then flags of ray_app/main.py"
[ -f "$1" ] || usage "$1: no such cluster file"
[ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] ||
  usage "no token in ~/.ray/auth_token: create one with ray get-auth-token --generate, then run ray up"
cluster_file=$(realpath "$1")
shift
program=main.py
case ${1:-} in
  main.py | tune.py) program=$1 && shift ;;
  *.py) usage "$1: expected main.py or tune.py" ;;
esac
cd "$(dirname "$0")/.."

export RAY_AUTH_MODE=token
# A random port: SSH may hold a forwarded port for a while after the tunnel is closed.
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
job=vgg-$(date +%Y%m%d-%H%M%S)-$$
tunnel_log=$(mktemp)
shipped=$(mktemp -d)
setsid ray dashboard "$cluster_file" --port "$port" > "$tunnel_log" 2>&1 < /dev/null &
tunnel=$!
trap 'kill -- -$tunnel 2> /dev/null || true; rm -rf "$tunnel_log" "$shipped"' EXIT
next_steps() {
  echo "To see its output: ray exec $cluster_file 'ray job logs --follow $job'" >&2
  echo "To stop it: ray exec $cluster_file 'ray job stop $job'" >&2
}
trap 'echo "The job is still running." >&2; next_steps; exit 130' INT TERM

until (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
  if ! kill -0 $tunnel 2> /dev/null; then
    cat "$tunnel_log" >&2
    echo "submit.sh: error: no tunnel to the head node of $cluster_file: is the cluster up?" >&2
    exit 1
  fi
  sleep 0.2
done

address=http://127.0.0.1:$port
# Only ray_app: the repository may also contain images, runs, and weights.
cp -r ray_app "$shipped"
ray job submit --address "$address" --submission-id "$job" --working-dir "$shipped" -- \
  python "ray_app/$program" "$@" || true
# The ray command exits with 1 for any failure, and with 0 if the job was stopped.
if code=$(python -c '
import sys
from ray.job_submission import JobStatus, JobSubmissionClient
job = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
if not job.status.is_terminal():
    sys.exit(1)
codes = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}
code = codes.get(job.status, job.driver_exit_code or 1)
# A negative code is the signal that killed the driver; shells report 128 + signal.
print(code if code >= 0 else 128 - code)
' "$address" "$job" 2> /dev/null); then
  exit "$code"
fi
echo "submit.sh: error: could not get the status of job $job; if it was submitted, it is still running." >&2
next_steps
exit 1
