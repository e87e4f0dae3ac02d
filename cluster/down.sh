#!/usr/bin/env bash
# Stop Ray on every machine of a cluster of local.yaml's kind: cluster/down.sh CLUSTER_FILE
# On such machines `ray down` alone leaves Ray running on the workers.
set -euo pipefail

usage() { echo "down.sh: error: $1" >&2; exit 2; }

[ $# -eq 1 ] || usage "expected a cluster file, such as cluster/local.yaml"
[ -f "$1" ] || usage "$1: no such cluster file"
# One line for each worker: address, user, key.
workers=$(python -c '
import os, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
auth = config["auth"]
for address in config["provider"].get("worker_ips") or []:
    print(address, auth["ssh_user"], os.path.expanduser(auth.get("ssh_private_key", "~/.ssh/id_ed25519")))
' "$1" 2> /dev/null) || usage "$1: not a cluster file of local.yaml's kind"

status=0
# First the head, whose autoscaler would start Ray on the workers again.
ray down --yes "$1" || status=1
while read -r address user key; do
  [ -n "$address" ] || continue
  # The checks that Ray itself makes of a host: none, since its key may change whenever the machine is installed anew.
  ssh -n -o BatchMode=yes -o ConnectTimeout=10 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o LogLevel=ERROR -o IdentitiesOnly=yes -i "$key" "$user@$address" 'vgg-ddp/bin/ray stop --force' ||
    { echo "down.sh: error: Ray may still run on $address" >&2; status=1; }
done <<< "$workers"
exit $status
