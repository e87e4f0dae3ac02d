"""The metrics of a run, on the endpoint of a live cluster and in Prometheus."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray

from support.command import ROOT, free_port, wait_until
from vgg_ddp.job import Outcome
from vgg_ddp.observe.gauges import GAUGES
from vgg_ddp.run.files import VALIDATION_COLUMNS, Row

pytestmark = pytest.mark.slow
OBSERVABILITY = ROOT / "cluster" / "observability"
Train = Callable[..., tuple[Outcome, list[Row]]]


@pytest.fixture(scope="module", autouse=True)
def frequent_reports() -> Iterator[None]:
    """Ray's processes report their metrics every second instead of every ten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        yield


@dataclass(frozen=True)
class Watched:
    """A finished run: its metrics, the gauges seen while it trained, and its Prometheus."""

    rows: list[Row]
    seen: list[dict[str, float]]
    ask: Callable[..., Any]
    start: float


@contextmanager
def prometheus(folder: Path) -> Iterator[Callable[..., Any]]:
    """Prometheus as a user starts it, but scraping every second; yields a function that queries its API."""
    port = free_port()
    settings = {"PORT": str(port), "SCRAPE_INTERVAL": "1s", "PROMETHEUS_DATA": str(folder / "data")}

    def ask(path: str, **query: object) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            return json.load(response)["data"]

    with (folder / "log").open("w") as log:
        process = subprocess.Popen([OBSERVABILITY / "prometheus.sh"], env=os.environ | settings, stderr=log)
    try:
        yield ask
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def scrape(run_name: str) -> dict[str, float]:
    """The values of a run's gauges, as Prometheus would scrape them."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as response:
        lines = response.read().decode().splitlines()
    found = {}
    for line in lines:
        match = re.match(r"ray_vgg_(\w+)\{(.*)\} (\S+)$", line)
        if match and f'run="{run_name}"' in match[2].lower() and "rank=" not in match[2]:
            found[match[1]] = float(match[3])
    return found


@pytest.fixture(scope="module")
def watched(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if not shutil.which("prometheus"):
        pytest.skip("needs prometheus (Debian package prometheus)")
    start = time.time()
    with prometheus(tmp_path_factory.mktemp("prometheus")) as ask:
        results: list[tuple[Outcome, list[Row]]] = []
        # Several checkpoints, and less than a second per epoch.
        settings = {"epochs": 8, "lr": 0.01, "run_name": "watched", "checkpoint_every_seconds": 0.5}
        training = threading.Thread(target=lambda: results.append(train(2, **settings)))
        training.start()
        seen: list[dict[str, float]] = []
        while training.is_alive():
            values = scrape("watched")
            if values and (not seen or values != seen[-1]):
                seen.append(values)
            time.sleep(0.5)
        training.join()
        ((outcome, rows),) = results
        assert outcome.kind == "finished"
        yield Watched(rows, seen, ask, start)


def test_live_metrics_match_the_run_folder(watched: Watched) -> None:
    rows, seen = watched.rows, watched.seen
    # The run has no validation split.
    gauges = GAUGES.keys() - set(VALIDATION_COLUMNS)
    assert seen and seen[-1].keys() == gauges
    # Ray sends gauges one by one, so a scrape may mix two epochs: some scrape must match a row.
    complete = [values for values in seen if values.keys() == gauges]
    names = [name for name in rows[0] if name != "step" and name in gauges]
    by_row = [{name: pytest.approx(row[name], rel=1e-6) for name in names} for row in rows]
    assert any({name: values[name] for name in names} in by_row for values in complete), (complete, rows)
    assert {values["workers"] for values in complete} == {2}
    assert all(earlier["step"] <= later["step"] for earlier, later in pairwise(complete))


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Panel title and query of each curve in the dashboard, for the watched run."""
    for panel in json.loads((OBSERVABILITY / "grafana-dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$run", "watched").replace("$__range", "5m")


def test_every_dashboard_panel_has_data(watched: Watched) -> None:
    end = time.time()
    empty = [
        title
        for title, query in dashboard_queries()
        if not watched.ask("query_range", query=query, start=watched.start, end=end, step=1)["result"]
    ]
    # These need a validation split, a GPU, or a run that diverged.
    assert empty == ["Latest accuracy", "Loss", "Accuracy", "Memory per rank", "Run state", "GPUs", "GPU memory"]


def test_prometheus_scrapes_all_nodes_and_evaluates_all_alerts(watched: Watched) -> None:
    def scraped() -> list[str]:
        # On a busy machine, any single scrape may time out after its interval of one second.
        series = watched.ask("query", query="max_over_time(up[30m])")["result"]
        return [each["value"][1] for each in series]

    targets = watched.ask("targets")["activeTargets"]
    wait_until(lambda: scraped() == ["1"] * len(targets))
    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules(watched)))
    assert {rule["health"] for rule in rules(watched)} == {"ok"}
    # Scrapes that time out make NodeDown active.
    wait_until(lambda: {rule["state"] for rule in rules(watched)} == {"inactive"})


def test_step_time_of_every_rank_is_split_into_phases(watched: Watched) -> None:
    def last(name: str) -> dict[tuple[str, str], float]:
        query = f'last_over_time(ray_vgg_{name}{{run="watched"}}[10m])'
        series = watched.ask("query", query=query)["result"]
        return {(each["metric"]["rank"], each["metric"]["phase"]): float(each["value"][1]) for each in series}

    counts, sums = last("step_seconds_count"), last("phase_seconds_total")
    phases = ("data", "compute", "communication", "checkpoint")
    assert counts.keys() == {(rank, phase) for rank in "01" for phase in phases}
    for rank in "01":
        (steps,) = {counts[rank, phase] for phase in phases}
        # Only steps before a decision are timed, and those since Ray's last report are lost when it kills the workers.
        assert len(watched.rows) / 4 <= steps <= watched.rows[-1]["step"]
        seconds = {phase: sums[rank, phase] for phase in phases}
        mean = sum(row["seconds"] for row in watched.rows) / watched.rows[-1]["step"]
        assert 0.5 * mean <= sum(seconds.values()) / steps <= 2 * mean, (seconds, steps, mean)
        assert seconds["compute"] > seconds["data"] > 0 and seconds["communication"] > 0
        assert seconds["checkpoint"] > 0
        memory = watched.ask("query", query=f'last_over_time(ray_vgg_memory_bytes{{rank="{rank}"}}[10m])')["result"]
        assert 2**27 < float(memory[0]["value"][1]) < 2**31


def test_non_finite_loss_fires_the_alert_and_fails_the_run(watched: Watched, train: Train) -> None:
    outcome, _ = train(2, epochs=3, lr=1e30, run_name="wild")
    assert outcome.kind == "diverged"
    wait_until(lambda: [alert["labels"]["run"] for alert in fired(watched, "LossNotFinite")] == ["wild"])
    failed = "ray_train_run_name"
    wait_until(lambda: [alert["labels"][failed] for alert in fired(watched, "TrainingFailed")] == ["wild"])


def fired(watched: Watched, name: str) -> list[dict[str, Any]]:
    return [alert for alert in watched.ask("alerts")["alerts"] if alert["labels"]["alertname"] == name]


def rules(watched: Watched) -> list[dict[str, Any]]:
    return [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]


def test_finished_run_does_not_count_as_stalled(watched: Watched) -> None:
    query = "ray_vgg_step or ray_train_controller_state == 1"
    wait_until(lambda: not watched.ask("query", query=query)["result"])
