"""How a sweep ends if it is stopped before its trials run."""

import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from vgg_ddp.driver import cluster, ray_environment, signals
from vgg_ddp.driver.signals import InterruptedRunError
from vgg_ddp.sweep import launch


@pytest.mark.parametrize(
    ("error", "number"),
    [(KeyboardInterrupt(), signal.SIGINT), (InterruptedRunError(signal.SIGTERM), signal.SIGTERM)],
)
def test_signal_outside_of_the_trials_says_how_to_resume(
    error: BaseException, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ray_environment, "prepare", lambda *_: ray_environment.LOCAL)
    monkeypatch.setattr(cluster, "connect", stop)
    # It would replace the handlers of this process.
    monkeypatch.setattr(signals, "interrupt_on_signals", nullcontext)
    monkeypatch.setattr(launch, "TUNE_DEFAULTS", {})
    config = SimpleNamespace(address=None, ingest="memory", verbose=False)
    sweep = SimpleNamespace(config=config, resume_command=lambda: "python ray_app/tune.py --resume sweep")
    assert launch._run_on_ray(sweep, trials=None, table=None) == 128 + number
    assert capsys.readouterr().out == f"\nStopped by {number.name}. Resume with: {sweep.resume_command()}\n"
