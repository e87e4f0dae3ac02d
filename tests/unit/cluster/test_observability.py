"""The Prometheus alerts and the Grafana dashboard: promtool accepts the alerts, and all queried metrics exist."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

import pytest

from support.command import ROOT, free_port, wait_until
from vgg_ddp.observe.gauges import GAUGES, PHASE_SECONDS, RANK_GAUGES, STEP_BOUNDARIES, STEP_SECONDS

FOLDER = ROOT / "cluster" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())


def promtool(*arguments: object) -> str:
    if not shutil.which("promtool"):
        pytest.skip("needs promtool (Debian package prometheus)")
    result = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_prometheus_accepts_the_configuration() -> None:
    assert "1 rule files found" in promtool("check", "config", FOLDER / "prometheus.yml")


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", FOLDER / "alerts_test.yml")
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    tested = set(re.findall(r"alertname: (\w+)\n *exp_alerts:\n", (FOLDER / "alerts_test.yml").read_text()))
    assert alerts == tested


@pytest.mark.parametrize("name", ["alerts.yml", "grafana-dashboard.json"])
def test_queried_metrics_exist(name: str) -> None:
    queried = set(re.findall(r"ray_vgg_(\w+)", (FOLDER / name).read_text()))
    step_metrics = {f"{STEP_SECONDS}_bucket", f"{STEP_SECONDS}_count", f"{PHASE_SECONDS}_total"}
    assert queried and queried <= GAUGES.keys() | RANK_GAUGES.keys() | step_metrics


def test_dashboard_shows_each_metric_of_the_alerts() -> None:
    queries = re.findall(r"expr: (.*?)(?:for|labels): ", (FOLDER / "alerts.yml").read_text(), re.DOTALL)
    # This one is also a label.
    used = set(re.findall(r"\b(?:ray|autoscaler)_\w+", " ".join(queries))) - {"ray_train_run_name"}
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert len(used) > 10
    assert used <= set(re.findall(r"\w+", " ".join(shown)))


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    positions = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (column, row)
        for position in positions
        for column in range(position["x"], position["x"] + position["w"])
        for row in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(positions)


def test_missing_prometheus_is_reported_in_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        ["/bin/bash", FOLDER / "prometheus.sh"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "prometheus is not installed" in result.stderr and len(result.stderr.splitlines()) == 1


def test_only_running_clusters_are_scraped(tmp_path: Path) -> None:
    if not shutil.which("prometheus"):
        pytest.skip("needs prometheus (Debian package prometheus)")
    lists = {}
    # Ray writes the list of a running cluster every five seconds. Names as Ray's own, newest last.
    for name, seconds_ago in (("ended", 60), ("running", 0), ("other", 0)):
        lists[name] = tmp_path / "ray" / f"session_2026-11-30_{name}" / "prom_metrics_service_discovery.json"
        lists[name].parent.mkdir(parents=True)
        lists[name].write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [f"{name}:80"]}]))
        os.utime(lists[name], (time.time(), time.time() - seconds_ago))
    port = free_port()
    settings = {
        "PORT": str(port),
        "SCRAPE_INTERVAL": "1s",
        "RAY_TMPDIR": str(tmp_path),
        "PROMETHEUS_DATA": f"{tmp_path}/p",
    }

    def targets() -> list[str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets", timeout=10) as response:
                active = json.load(response)["data"]["activeTargets"]
        except OSError:
            return []
        return sorted(target["labels"]["instance"] for target in active)

    process = subprocess.Popen(
        [FOLDER / "prometheus.sh"], env=os.environ | settings, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: targets() == ["other:80", "running:80"], seconds=30)
        os.utime(lists["running"], (time.time(), time.time() - 60))
        wait_until(lambda: targets() == ["other:80"], seconds=30)
    finally:
        process.terminate()
        process.wait(20)


def test_buckets_of_a_step_show_its_seconds_within_28_percent() -> None:
    assert max(later / earlier for earlier, later in pairwise(STEP_BOUNDARIES)) <= 1.281
    assert STEP_BOUNDARIES[0] <= 0.0005 and STEP_BOUNDARIES[-1] >= 60
