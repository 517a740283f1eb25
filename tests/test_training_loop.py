"""The training loop of the program and its records, without a model."""

import json
import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import eqmdm
from eqmdm.cli.files import error_as_text
from eqmdm.cli.train.loop import AbstractEvents, StepError, check_finite, train_steps
from eqmdm.cli.train.records import Records, report


class Steps:
    """Stands for `eqmdm.train_step`: the loss is the number of the step."""

    def __init__(self, not_finite=None, fails=None):
        self._not_finite, self._fails = not_finite, fails

    def __call__(self, state, data, objective, optimiser, *, n_inner, **_):
        first = int(state.step) + 1
        if self._fails == first:
            raise eqx.EquinoxRuntimeError("EquinoxRuntimeError: a check\nin XLA")
        loss = np.arange(first, first + n_inner, dtype=float)
        if self._not_finite is not None:
            loss[loss == self._not_finite] = np.nan
        step = state.step + n_inner
        state = eqx.tree_at(lambda state: state.step, state, step)
        return state, {"loss": jnp.asarray(loss), "grad_norm": jnp.ones(n_inner)}


class Events(AbstractEvents):
    def __init__(self, stop_at=None):
        self.calls, self.asked = [], []
        self._stop_at = stop_at

    def stop_requested(self, due):
        self.asked.append(due)
        return "SIGTERM" if len(self.asked) == self._stop_at else ""

    def after_interval(self, step, state, values, stopped_by):
        self.calls.append((step, values["loss"].tolist(), stopped_by))
        return state


def _train(monkeypatch, steps, events, *, n_steps, start=0, n_inner=1, log_every=4):
    monkeypatch.setattr(eqmdm, "train_step", steps)
    state = eqmdm.TrainState(
        model=eqmdm.NoiseModel(lambda t, y: y, eqmdm.VPSDE()),
        ema={},
        opt_state=None,
        step=jnp.asarray(start, jnp.int32),
        key=jr.key_data(jr.key(0)),
    )
    return train_steps(
        state,
        iter(range(n_steps)),
        eqmdm.Objective(),
        optax.sgd(1.0),
        events,
        n_steps=n_steps,
        n_inner=n_inner,
        log_every=log_every,
        batch_size=1,
        ema_decay=0.9,
    )


def test_every_step_is_in_one_interval(monkeypatch):
    events = Events()
    state = _train(monkeypatch, Steps(), events, n_steps=10, n_inner=2)
    assert int(state.step) == 10
    assert [(step, reason) for step, _, reason in events.calls] == [
        (4, ""),
        (8, ""),
        (10, ""),
    ]
    losses = [loss for _, interval, _ in events.calls for loss in interval]
    assert losses == list(range(1, 11))
    # Only where an interval ends may several processes ask one another.
    assert events.asked == [False, True, False, True, True]


def test_resumed_loop_logs_at_the_same_steps(monkeypatch):
    events = Events()
    _train(monkeypatch, Steps(), events, start=6, n_steps=12)
    assert [call[:2] for call in events.calls] == [
        (8, [7, 8]),
        (12, [9, 10, 11, 12]),
    ]


def test_loop_stops_where_it_is_asked_to(monkeypatch):
    events = Events(stop_at=2)
    state = _train(monkeypatch, Steps(), events, n_steps=10)
    assert int(state.step) == 2
    assert events.calls == [(2, [1, 2], "SIGTERM")]


def test_finished_loop_takes_no_step(monkeypatch):
    events = Events()
    state = _train(monkeypatch, Steps(), events, start=10, n_steps=10)
    assert int(state.step) == 10 and not events.asked


def test_loss_that_is_not_finite_is_named_by_its_step(monkeypatch):
    with pytest.raises(StepError, match="at step 3 the loss became nan"):
        _train(monkeypatch, Steps(not_finite=3), Events(), n_steps=10)


def test_failed_check_is_named_by_its_step(monkeypatch):
    with pytest.raises(StepError, match="^at step 7: a check$"):
        _train(monkeypatch, Steps(fails=7), Events(), n_steps=10)


def test_value_that_is_not_finite_is_named_before_the_check_that_it_sets_off(
    monkeypatch,
):
    with pytest.raises(StepError, match="at step 2 the loss became nan"):
        _train(monkeypatch, Steps(not_finite=2, fails=3), Events(), n_steps=10)


def test_first_term_that_is_not_finite_is_named_rather_than_the_sum():
    values = {
        "loss": np.array([1.0, np.inf, np.nan]),
        "diffusion": np.array([1.0, np.inf, np.nan]),
        "prior": np.array([1.0, 1.0, np.nan]),
    }
    with pytest.raises(StepError, match="at step 9 the diffusion became inf"):
        check_finite(values, step=10)
    check_finite({"loss": np.ones(3)}, step=10)


# --- Records -------------------------------------------------------------------------


def test_records_after_the_last_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path, up_to=0)
    for step in (2, 4, 6):
        records.add({"step": step, "nats": step / 2})
    with path.open("a") as file:
        file.write('{"step": 8, "na')
    assert [r["step"] for r in Records(path, up_to=4).read()] == [2, 4]


def test_error_of_one_example_is_in_words_and_null_in_files(tmp_path, capsys):
    summary = {"total": (-2.0, math.nan), "bits_per_dim": (1.5, math.nan)}
    report(tmp_path / "bound.json", summary, {"step": 3})
    shown = capsys.readouterr().out
    assert shown.count("not known for one example") == 2 and "nan" not in shown
    assert "bits_per_dim" in shown and "bits/dim" in shown
    terms = json.loads((tmp_path / "bound.json").read_text())["terms"]
    assert terms["bits_per_dim"] == {
        "mean": 1.5,
        "standard_error": None,
        "unit": "bits/dim",
    }
    assert error_as_text(0.25) == "0.2500"
