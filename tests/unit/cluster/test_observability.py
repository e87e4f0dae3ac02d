"""The Prometheus alerts and the Grafana dashboard: promtool accepts the alerts, and all queried metrics exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.command import ROOT
from vgg_ddp.observe.gauges import GAUGES, PHASE_SECONDS, RANK_GAUGES, STEP_SECONDS

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
