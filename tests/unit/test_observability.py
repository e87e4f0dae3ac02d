"""Prometheus' alerts and Grafana's dashboard: as promtool reads them, and whether what they ask for is there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from command import ROOT
from vgg_ddp.gauges import GAUGES, PHASE_SECONDS, RANK_GAUGES, STEP_SECONDS

FOLDER = ROOT / "cluster" / "observability"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())


def promtool(*arguments: object) -> str:
    if not shutil.which("promtool"):
        pytest.skip("needs promtool, of Debian's package prometheus")
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
def test_gauges_that_are_asked_for_exist(name: str) -> None:
    asked = set(re.findall(r"ray_vgg_(\w+)", (FOLDER / name).read_text()))
    of_steps = {f"{STEP_SECONDS}_bucket", f"{STEP_SECONDS}_count", f"{PHASE_SECONDS}_total"}
    assert asked and asked <= GAUGES.keys() | RANK_GAUGES.keys() | of_steps


def test_panels_of_the_dashboard_have_their_own_place() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (column, row)
        for place in places
        for column in range(place["x"], place["x"] + place["w"])
        for row in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_prometheus_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        ["/bin/bash", FOLDER / "prometheus.sh"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "prometheus is not installed" in result.stderr and len(result.stderr.splitlines()) == 1
