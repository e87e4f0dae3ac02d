"""The search algorithm that gives Ray Tune the trials of a sweep. Without a Ray cluster."""

import math
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from vgg_ddp.run.storage import Folder
from vgg_ddp.search_space import Choice, Parameter, Range
from vgg_ddp.sweep.config import METRIC
from vgg_ddp.sweep.search import TrialSearch, optuna_sampler
from vgg_ddp.sweep.trials import Trials

SPACE: tuple[Parameter, ...] = (Range("lr", 0.001, 1.0), Range("cutout", 0, 8), Choice("recipe", ("fast", "classic")))


def trials_of(tmp_path: Path, count: int) -> Trials:
    trials = Trials(Folder.at(str(tmp_path)), "s", SPACE)
    for index in range(count):
        trials.add({"lr": 0.1 + index / 10, "cutout": index, "recipe": "fast"})
    return trials


def test_known_trials_are_given_once_in_order_unless_they_are_done(tmp_path: Path) -> None:
    trials = trials_of(tmp_path, 3)
    trials.all[1].state = "stopped early"
    search = TrialSearch(trials, SPACE, None)
    assert [search.suggest(name) for name in "abc"] == [
        {"name": "s-001", "point": trials.all[0].point},
        {"name": "s-003", "point": trials.all[2].point},
        Searcher.FINISHED,
    ]


def test_optuna_learns_from_earlier_and_new_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trials = trials_of(tmp_path, 2)
    trials.all[0].state, trials.all[0].accuracy = "finished", 0.5
    sampler = optuna_sampler(SPACE, seed=0)
    search = TrialSearch(trials, SPACE, sampler)
    assert search.suggest("a")["name"] == "s-002"
    for number in range(60):
        suggestion = search.suggest(f"t{number}")
        point = suggestion["point"]
        assert 0.001 <= point["lr"] <= 1 and isinstance(point["cutout"], int) and 0 <= point["cutout"] <= 8
        # The best learning rate is 0.03. Every tenth trial fails.
        accuracy = math.nan if number % 10 == 9 else 1 - abs(math.log(point["lr"] / 0.03)) / 10
        search.on_trial_complete(f"t{number}", {METRIC: accuracy})
    assert [trial.name for trial in trials.all[-2:]] == ["s-061", "s-062"]
    late = sorted(trial.point["lr"] for trial in trials.all[-20:])
    assert 0.01 < late[10] < 0.1
