#!/usr/bin/env bash
# Stop Ray on every machine of a cluster file like local.yaml: cluster/down.sh CLUSTER_FILE
# `ray down` alone leaves Ray running on the workers of such clusters.
set -euo pipefail

usage() { echo "down.sh: error: $1" >&2; exit 2; }

[ $# -eq 1 ] || usage "expected a cluster file, such as cluster/local.yaml"
[ -f "$1" ] || usage "$1: no such cluster file"
folder=$(cd "$(dirname "$0")" && pwd)
machines=$folder/machines.py
python "$machines" check "$1"

status=0
# The head first: its autoscaler would restart Ray on the workers.
PATH=$folder/ssh:$PATH ray down --yes "$1" || status=1
python "$machines" stop-ray "$1" || status=1
exit $status
