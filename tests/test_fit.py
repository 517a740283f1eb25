import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import eqmdm
from eqmdm import nn
from helpers import tree_allclose


SETTINGS = {"key": jr.key(0), "batch_size": 8, "log_every": 2, "validate_every": 4}
SETTINGS |= {"checkpoint_every": 4, "optimiser": eqmdm.make_optimiser(1e-3)}


def _points(n=50):
    return np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)


def _model():
    network = nn.MLP((2,), 1, width=8, depth=1, key=jr.key(1))
    return eqmdm.NoiseModel(network, eqmdm.VPSDE())


class Recorder:
    """A callback that records events, and stops at one of them."""

    def __init__(self, stop_at=None):
        self.events, self._stop_at = [], stop_at

    def __call__(self, event):
        self.events.append((event.kind, event.step))
        return (event.kind, event.step) == self._stop_at


class _Linear(eqx.Module):
    """A denoiser of N(0, s^2): s is all that is learned."""

    log_std: jax.Array

    def __call__(self, log_snr, z):
        variance = jnp.exp(2 * self.log_std)
        return z * variance / (variance + jnp.exp(-log_snr))


@pytest.mark.slow
def test_fit_learns_the_density_of_normal_points(key):
    std = 1.7
    x = std * np.random.default_rng(0).normal(size=(4000, 1)).astype(np.float32)
    model = eqmdm.DenoiserModel(_Linear(jnp.zeros(())), eqmdm.VPSDE())
    objective = eqmdm.Objective(time_sampler=eqmdm.LogSNRTimeSampler())
    model = eqmdm.fit(
        model,
        x,
        key=key,
        steps=400,
        batch_size=64,
        optimiser=optax.adam(optax.cosine_decay_schedule(2e-2, 400)),
        objective=objective,
    )
    # The standard error of the estimate from 4000 points is 1 %.
    assert float(jnp.exp(model.network.log_std)) == pytest.approx(std, rel=0.05)
    bound = eqmdm.evaluate(model, x, objective, key=key, n_draws=8, batch_size=4000)
    log_density = -0.5 * (x[:, 0] / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    gap = bound.terms["total"] - log_density
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert abs(gap.mean()) < 4 * error


def test_interrupted_fit_ends_as_one_that_was_not(tmp_path):
    x = _points()
    settings = SETTINGS | {"validation": x[:6]}
    straight = eqmdm.fit(_model(), x, steps=8, **settings)
    for run_dir, stop_at in (("event", ("step", 3)), ("log", ("log", 6))):
        first = Recorder(stop_at)
        place = {"run_dir": tmp_path / run_dir}
        eqmdm.fit(_model(), x, steps=8, callbacks=[first], **settings, **place)
        assert first.events[-1] == ("end", stop_at[1])
        second = Recorder()
        resumed = eqmdm.fit(
            _model(), x, steps=8, callbacks=[second], **settings, **place
        )
        assert second.events[0] == ("step", stop_at[1] + 1)
        assert tree_allclose(resumed, straight, rtol=0, atol=0)
        loaded = eqmdm.load_run(tmp_path / run_dir, like=_model())
        assert tree_allclose(loaded, straight, rtol=0, atol=0)
    # A run that is complete is only loaded.
    third = Recorder()
    again = eqmdm.fit(_model(), x, steps=8, callbacks=[third], **settings, **place)
    assert third.events == [("end", 8)]
    assert tree_allclose(again, straight, rtol=0, atol=0)


def test_events_come_in_order_with_their_values():
    x, events = _points(), []

    def keep(event):
        events.append(event)
        # The state can be used within the callback.
        assert int(event.state.step) == event.step and event.steps == 6

    eqmdm.fit(_model(), x, steps=6, validation=x[:6], callbacks=[keep], **SETTINGS)
    found = [(e.kind, e.step) for e in events if e.kind != "step"]
    assert found == [
        ("log", 2),
        ("log", 4),
        ("validation", 4),
        ("log", 6),
        ("validation", 6),
        ("end", 6),
    ]
    assert [e.step for e in events if e.kind == "step"] == [1, 2, 3, 4, 5, 6]
    logs = [e for e in events if e.kind == "log"]
    assert all(e.metrics["loss"].shape == (2,) for e in logs)
    assert all(e.steps_per_second > 0 for e in logs)
    validations = [e for e in events if e.kind == "validation"]
    assert all(len(e.evaluation.loss) == 6 for e in validations)
    assert not any(e.metrics or e.evaluation for e in events if e.kind == "step")


def test_source_on_the_host_trains_as_the_array_does(tmp_path):
    x = _points()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    class Source:
        shape = x.shape

        def __getitem__(self, indices):
            return x[indices]

    models = [
        eqmdm.fit(_model(), data, steps=4, **SETTINGS)
        for data in (x, jnp.asarray(x), x.tolist(), mapped, Source())
    ]
    for one, other in itertools.pairwise(models):
        # float32 sums in two programs.
        assert tree_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_data_set_brings_its_objective_and_validation():
    levels = np.random.default_rng(0).integers(0, 17, (20, 2, 2, 1), dtype=np.uint8)
    dataset = eqmdm.data.Dataset(
        "levels", levels[:12], levels[12:16], levels[16:], n_levels=17, flip=True
    )
    network = nn.MLP((2, 2, 1), 1, width=8, depth=1, key=jr.key(1))
    model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
    events = []
    eqmdm.fit(model, dataset, steps=4, callbacks=[events.append], **SETTINGS)
    (validation,) = (e.evaluation for e in events if e.kind == "validation")
    bits = -validation.terms["total"] / (4 * np.log(2))
    np.testing.assert_allclose(validation.loss, bits, rtol=1e-6)
    assert len(bits) == 4


def test_run_with_other_data_key_or_settings_is_rejected(tmp_path):
    x, place = _points(), {"run_dir": tmp_path}
    eqmdm.fit(_model(), x, steps=2, **SETTINGS, **place)
    changes = {"key": jr.key(1), "batch_size": 4, "ema_decay": 0.9}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"`{name}` must be .*, as when the run"):
            eqmdm.fit(_model(), x, steps=4, **SETTINGS | {name: value} | place)
    with pytest.raises(ValueError, match="`data_fingerprint` must be"):
        eqmdm.fit(_model(), 2 * x, steps=4, **SETTINGS, **place)


def test_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(tmp_path):
    # The fifth update takes the parameters beyond float32.
    rate = optax.piecewise_constant_schedule(1e-3, {4: 1e38})
    settings = SETTINGS | {"optimiser": optax.sgd(rate), "run_dir": tmp_path}
    message = "became (nan|inf|-inf); training has stopped. The checkpoint of step 4"
    with pytest.raises(FloatingPointError, match=f"At step 6 the [a-z]* {message}"):
        eqmdm.fit(_model(), _points(), steps=20, **settings)
    kept = eqmdm.Run(tmp_path).restore()
    assert kept.step == 4
    assert all(np.isfinite(array).all() for array in kept.arrays.values())


def test_wrong_arguments_are_rejected_by_name():
    for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
            eqmdm.fit(_model(), _points(), **{"steps": 2} | SETTINGS | {name: 0})
    with pytest.raises(TypeError, match="`examples` must be floating-point data"):
        eqmdm.fit(_model(), np.zeros((9, 2), np.uint8), steps=2, **SETTINGS)
    with pytest.raises(ValueError, match="`examples` must be finite"):
        eqmdm.fit(_model(), np.full((9, 2), np.nan), steps=2, **SETTINGS)
    with pytest.raises(TypeError, match="`data` must be an array of real numbers"):
        eqmdm.fit(_model(), ["a", "b"], steps=2, **SETTINGS)


@pytest.mark.slow
def test_example_of_the_docstring_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = eqmdm.fit.__doc__.split("```python\n")[1].split("```")[0]
    lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
    (call,) = [line for line in lines if "eqmdm.fit(" in line]
    program = "\n".join(lines).replace(
        call, call.replace("key=key", "key=key, steps=9")
    )
    names = {"jax": jax, "eqmdm": eqmdm}
    exec(program, names)
    assert names["samples"].shape == (64, 2)
    assert isinstance(names["model"], eqmdm.NoiseModel)
