"""The training loop, without a model."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import eqmdm


class Steps:
    """Stands for `eqmdm.train_step`: the loss is the number of the step."""

    def __init__(self, not_finite=None, fails=None, **terms):
        self._not_finite, self._fails, self._terms = not_finite, fails, terms

    def __call__(self, state, data, objective, optimiser, *, n_inner, **_):
        first = int(state.step) + 1
        if self._fails == first:
            raise eqx.EquinoxRuntimeError("a check")
        loss = np.arange(first, first + n_inner, dtype=float)
        if self._not_finite is not None:
            loss[loss == self._not_finite] = np.nan
        step = state.step + n_inner
        state = eqx.tree_at(lambda state: state.step, state, step)
        terms = {k: jnp.full(n_inner, float(v)) for k, v in self._terms.items()}
        metrics = {"loss": jnp.asarray(loss), "grad_norm": jnp.ones(n_inner)}
        return state, metrics | terms


class Events:
    """A callback that records events, and stops training at number `stop_at`."""

    def __init__(self, stop_at=None):
        self.logs, self.kinds = [], []
        self._stop_at = stop_at

    def __call__(self, event):
        self.kinds.append(event.kind)
        if event.kind == "log":
            self.logs.append((event.step, event.metrics["loss"].tolist()))
        return len(self.kinds) == self._stop_at


def _train(monkeypatch, events, *, train_step=None, steps=10, start=0, log_every=4):
    stand_in = Steps() if train_step is None else train_step
    monkeypatch.setattr("eqmdm._training.loop.train_step", stand_in)
    state = eqmdm.TrainState(
        model=eqmdm.NoiseModel(lambda t, y: y, eqmdm.VPSDE()),
        ema={},
        opt_state=None,
        step=jnp.asarray(start, jnp.int32),
        key=jr.key_data(jr.key(0)),
    )
    objective = eqmdm.Objective()
    data = eqmdm.TrainingSet(np.zeros((3, 2), np.float32), objective)
    # Every event but the logs and the end is left out.
    return eqmdm.train(
        state,
        data,
        objective,
        optax.sgd(1.0),
        steps=steps,
        batch_size=1,
        log_every=log_every,
        checkpoint_every=log_every,
        callbacks=[events],
    )


@pytest.mark.parametrize("per_call", [1, 2])
def test_every_step_is_in_one_interval(per_call, monkeypatch):
    monkeypatch.setattr("eqmdm._training.loop.steps_per_call", lambda: per_call)
    events = Events()
    state = _train(monkeypatch, events)
    assert int(state.step) == 10
    assert events.logs == [(4, [1, 2, 3, 4]), (8, [5, 6, 7, 8]), (10, [9, 10])]
    assert events.kinds.count("step") == 10 // per_call
    # At the end of every interval the log comes after the step.
    assert events.kinds[-3:] == ["step", "log", "end"]


def test_resumed_loop_logs_at_the_same_steps(monkeypatch):
    events = Events()
    _train(monkeypatch, events, start=6, steps=12)
    assert events.logs == [(8, [7, 8]), (12, [9, 10, 11, 12])]


def test_loop_stops_where_it_is_asked_to(monkeypatch):
    events = Events(stop_at=2)
    state = _train(monkeypatch, events)
    assert int(state.step) == 2
    assert events.logs == [(2, [1, 2])] and events.kinds[-1] == "end"


def test_finished_loop_takes_no_step(monkeypatch):
    events = Events()
    state = _train(monkeypatch, events, start=10)
    assert int(state.step) == 10 and events.kinds == ["end"]


def test_loss_that_is_not_finite_is_named_by_its_step(monkeypatch):
    steps = Steps(not_finite=3)
    with pytest.raises(FloatingPointError, match="At step 3 the loss became nan"):
        _train(monkeypatch, Events(), train_step=steps)


def test_failed_check_is_named_by_its_step(monkeypatch):
    with pytest.raises(eqx.EquinoxRuntimeError, match="a check") as raised:
        _train(monkeypatch, Events(), train_step=Steps(fails=7))
    assert raised.value.__notes__ == ["This was in training step 7."]


def test_value_that_is_not_finite_is_named_before_the_check_that_it_sets_off(
    monkeypatch,
):
    steps = Steps(not_finite=2, fails=3)
    with pytest.raises(FloatingPointError, match="At step 2 the loss became nan"):
        _train(monkeypatch, Events(), train_step=steps)


def test_first_term_that_is_not_finite_is_named_rather_than_the_sum(monkeypatch):
    steps = Steps(not_finite=1, diffusion=np.inf)
    with pytest.raises(FloatingPointError, match="At step 1 the diffusion became inf"):
        _train(monkeypatch, Events(), train_step=steps)
