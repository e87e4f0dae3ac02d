"""What the metrics endpoint of a live cluster shows of a run."""

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import ray

from vgg_ddp.gauges import GAUGES
from vgg_ddp.report import Row
from vgg_ddp.worker import Outcome

pytestmark = pytest.mark.slow
Train = Callable[..., tuple[Outcome, list[Row]]]


@pytest.fixture(scope="module", autouse=True)
def frequent_reports() -> Iterator[None]:
    """Ray's processes report their metrics every second instead of every ten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        yield


def scrape(run_name: str) -> dict[str, float]:
    """The values of a run's gauges, as Prometheus would read them."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    found = {}
    for line in lines:
        match = re.match(r"ray_vgg_(\w+)\{(.*)\} (\S+)$", line)
        if match and f'run="{run_name}"' in match[2].lower():
            found[match[1]] = float(match[3])
    return found


def test_endpoint_of_a_live_run_shows_what_the_run_folder_holds(train: Train) -> None:
    results: list[tuple[Outcome, list[Row]]] = []
    settings = {"epochs": 4, "lr": 0.01, "run_name": "watched"}
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
    assert seen and seen[-1].keys() == GAUGES.keys()
    # Ray sends the gauges one by one: an epoch counts if all that belongs to it was seen together.
    whole = [values for values in seen if values.keys() == GAUGES.keys()]
    names = [name for name in rows[0] if name != "step"]
    by_row = [{name: pytest.approx(row[name], rel=1e-6) for name in names} for row in rows]
    assert any({name: values[name] for name in names} in by_row for values in whole), (whole, rows)
    assert {values["workers"] for values in whole} == {2}
    assert all(earlier["step"] <= later["step"] for earlier, later in pairwise(whole))
