"""The search algorithm that gives Ray Tune its trials: first those that are known, then, with Optuna, new ones."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from vgg_ddp.search_space import Choice, Parameter
from vgg_ddp.sweep.config import METRIC
from vgg_ddp.sweep.trials import DONE, Trials


def optuna_sampler(space: Sequence[Parameter], seed: int, verbose: bool = False) -> Searcher:
    """Optuna's sampler for a search space."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    if not verbose:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch({p.name: _domain(p) for p in space}, metric=METRIC, mode="max", seed=seed)


def _domain(parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return tune.choice(list(parameter.values))
    if parameter.is_integer:
        # Without the upper end.
        draw = tune.lograndint if parameter.is_logarithmic else tune.randint
        return draw(parameter.low, parameter.high + 1)
    return (tune.loguniform if parameter.is_logarithmic else tune.uniform)(parameter.low, parameter.high)


class TrialSearch(Searcher):  # type: ignore[misc]
    """Gives each trial of the sweep to Ray Tune once, and each new result to the sampler, if there is one.

    Ray's own algorithms draw other values when a sweep resumes, so that trials would lose their run folders.
    """

    def __init__(self, trials: Trials, space: Sequence[Parameter], sampler: Searcher | None) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._trials = trials
        self._space = space
        self._sampler = sampler
        self._waiting = deque(trial for trial in trials.all if trial.is_waiting)
        # Ray's ID of each trial that the sampler suggested.
        self._suggested: set[str] = set()
        for trial in trials.all:
            if sampler and trial.state in DONE and not math.isnan(trial.accuracy):
                sampler.add_evaluated_point(trial.point, trial.accuracy)

    def suggest(self, trial_id: str) -> Any:
        """The name and the values of the next trial."""
        if self._waiting:
            trial = self._waiting.popleft()
        elif self._sampler is None:
            return Searcher.FINISHED
        else:
            values = self._sampler.suggest(trial_id)
            if not isinstance(values, dict):
                return values
            self._suggested.add(trial_id)
            trial = self._trials.add({p.name: p.rounded(values[p.name]) for p in self._space})
        return {"name": trial.name, "point": trial.point}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the sampler how good a trial was that it suggested."""
        if self._sampler is None or trial_id not in self._suggested:
            return
        accuracy = (result or {}).get(METRIC, math.nan)
        if math.isnan(accuracy):
            self._sampler.on_trial_complete(trial_id, None, error=True)
        else:
            self._sampler.on_trial_complete(trial_id, result, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep resumes from trials.csv."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as in `save`."""
