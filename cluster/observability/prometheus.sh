#!/usr/bin/env bash
# Prometheus for a Ray cluster, with the alerts of this folder: run it on the cluster's head, from a copy of the folder.
# Ctrl-C ends it.
# Further flags go to prometheus. It listens on loopback only; Grafana finds it at http://127.0.0.1:9090.
#
#   PORT              port to listen on, default 9090
#   SCRAPE_INTERVAL   how often it asks each node, default 10s
#   PROMETHEUS_DATA   where it keeps what it has read, default ~/.local/share/vgg-ddp/prometheus
#   RAY_TMPDIR        as Ray was started with
set -euo pipefail

if ! command -v prometheus > /dev/null; then
  echo "prometheus.sh: error: prometheus is not installed: apt-get install prometheus, or https://prometheus.io/download." >&2
  exit 2
fi
ray=${RAY_TMPDIR:-/tmp}/ray
if [ ! -e "$ray/prom_metrics_service_discovery.json" ]; then
  echo "prometheus.sh: no Ray cluster has started here yet ($ray); its nodes appear as soon as one does." >&2
fi
here=$(cd "$(dirname "$0")" && pwd)
data=${PROMETHEUS_DATA:-$HOME/.local/share/vgg-ddp/prometheus}
mkdir -p "$data"

# Paths in the file count from where it lies.
config=$data/prometheus.yml
sed -e "s#alerts.yml#$here/alerts.yml#" -e "s#/tmp/ray#$ray#" -e "s#_interval: 10s#_interval: ${SCRAPE_INTERVAL:-10s}#" \
  "$here/prometheus.yml" > "$config"
exec prometheus --config.file="$config" --storage.tsdb.path="$data/data" \
  --web.listen-address="127.0.0.1:${PORT:-9090}" "$@"
