#!/usr/bin/env bash
# Run Prometheus for a Ray cluster, with the alerts in this folder. Run it on the head node, from a copy of this folder,
# and stop it with Ctrl-C. It passes all flags on to prometheus, and listens on loopback only: http://127.0.0.1:9090.
#
#   PORT              port to listen on, default 9090
#   SCRAPE_INTERVAL   how often to scrape each node, default 10s
#   PROMETHEUS_DATA   where to store the metrics, default ~/.local/share/vgg-ddp/prometheus
#   RAY_TMPDIR        the value that Ray was started with
set -euo pipefail

if ! command -v prometheus > /dev/null; then
  echo "prometheus.sh: error: prometheus is not installed: apt-get install prometheus, or https://prometheus.io/download." >&2
  exit 2
fi
ray=${RAY_TMPDIR:-/tmp}/ray
here=$(cd "$(dirname "$0")" && pwd)
data=${PROMETHEUS_DATA:-$HOME/.local/share/vgg-ddp/prometheus}
mkdir -p "$data/nodes"

# Ray's dashboard lists the nodes of its cluster in this file every five seconds. When the cluster ends, the file stays.
list_live() {
  find "$ray"/session_2* -maxdepth 1 -name prom_metrics_service_discovery.json -newermt "20 seconds ago" 2> /dev/null || true
}

# Links $data/nodes/SESSION.json to the list of each cluster that is running.
follow_clusters() {
  live=" "
  while read -r list; do
    session=$(basename "$(dirname "$list")")
    ln -sfn "$list" "$data/nodes/$session.json"
    live+="$session "
  done < <(list_live)
  for link in "$data"/nodes/*.json; do
    [[ $live == *" $(basename "$link" .json) "* ]] || rm -f "$link"
  done
}

follow_clusters
if [ "$live" = " " ]; then
  echo "prometheus.sh: no Ray cluster is running here ($ray); its nodes appear once one starts." >&2
fi
# Prometheus takes over the process ID of this script.
while kill -0 $$ 2> /dev/null; do
  sleep 5
  follow_clusters
done < /dev/null > /dev/null 2>&1 &

# Paths in the file are relative to its own folder.
config=$data/prometheus.yml
sed -e "s#alerts.yml#$here/alerts.yml#" -e "s#nodes/#$data/nodes/#" -e "s#_interval: 10s#_interval: ${SCRAPE_INTERVAL:-10s}#" \
  "$here/prometheus.yml" > "$config"
exec prometheus --config.file="$config" --storage.tsdb.path="$data/data" \
  --web.listen-address="127.0.0.1:${PORT:-9090}" "$@"
