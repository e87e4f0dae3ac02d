#!/usr/bin/env bash
# Train on a cluster:        cluster/submit.sh CLUSTER_FILE [flags of ray_app/main.py]
# Tune on a cluster:         cluster/submit.sh CLUSTER_FILE tune.py SPACE ... [flags of ray_app/tune.py]
# Follow an earlier job:     cluster/submit.sh CLUSTER_FILE --attach ID
# Save a checkpoint, stop:   cluster/submit.sh CLUSTER_FILE --stop ID
# Ships ray_app as a Ray job through an SSH tunnel, shows its output, and exits with its exit code. If the connection is
# lost, it reconnects. After a change to the code, just submit again: the cluster does not need a restart.
set -euo pipefail

usage() { echo "submit.sh: error: $1" >&2; exit 2; }

[ $# -ge 1 ] || usage "expected a cluster file, such as cluster/local.yaml, then flags of ray_app/main.py"
[ -f "$1" ] || usage "$1: no such cluster file"
[ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] ||
  usage "no token in ~/.ray/auth_token: create one with ray get-auth-token --generate, then run ray up"
cluster_file=$1
shift
case ${1:-} in
  --attach | --stop)
    [ $# -eq 2 ] || usage "$1: expected the ID of one job, such as vgg-20261130-093000-4711, and no other flags"
    action=${1#--} && shift ;;
  main.py | tune.py) action=submit ;;
  *.py) usage "$1: expected main.py or tune.py" ;;
  *) action=submit && set -- main.py "$@" ;;
esac
RAY_AUTH_MODE=token exec python "$(dirname "$0")/submit_job.py" "$0" "$cluster_file" "$action" "$@"
