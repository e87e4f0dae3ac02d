#!/usr/bin/env bash
# Stop Ray on every machine of a cluster file like local.yaml: cluster/down.sh CLUSTER_FILE
# `ray down` alone leaves Ray running on the workers of such clusters.
set -euo pipefail

usage() { echo "down.sh: error: $1" >&2; exit 2; }

[ $# -eq 1 ] || usage "expected a cluster file, such as cluster/local.yaml"
[ -f "$1" ] || usage "$1: no such cluster file"
# One line per worker: address, user, key.
workers=$(python -c '
import os, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
auth = config["auth"]
for address in config["provider"].get("worker_ips") or []:
    print(address, auth["ssh_user"], os.path.expanduser(auth.get("ssh_private_key", "~/.ssh/id_ed25519")))
' "$1" 2> /dev/null) || usage "$1: not a cluster file like local.yaml"

status=0
# The head first: its autoscaler would restart Ray on the workers.
ray down --yes "$1" || status=1
while read -r address user key; do
  [ -n "$address" ] || continue
  # Like Ray, do not check host keys: a reinstalled machine has a new one.
  ssh -n -o BatchMode=yes -o ConnectTimeout=10 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o LogLevel=ERROR -o IdentitiesOnly=yes -i "$key" "$user@$address" 'vgg-ddp/bin/ray stop --force' ||
    { echo "down.sh: error: Ray may still be running on $address" >&2; status=1; }
done <<< "$workers"
exit $status
