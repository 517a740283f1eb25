"""Tests of the presets of `eqmdm train`, and of the options that they set."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from evaluations import error_of
from script_runs import make_run, single_precision, working_in

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.evaluate.settings import resolve
from eqmdm.cli.parsing import parse
from eqmdm.cli.train import program as train
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.trained import load_trained


LAPTOP = "--data=images.npy --preset=laptop --steps=6 --warmup=2 --width=4 --diffusion="
LAPTOP += "vpsde --log-every=2 --validate-every=6 --checkpoint-every=2 --batch-size=4"
LAPTOP += " --validation-examples=4 --test-examples=4 --n-samples=2 --sample-steps=2"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The directory of a run that was stopped before its first step."""
    directory = tmp_path_factory.mktemp("preset")
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (60, 16, 16, 1))
    levels[rng.random(levels.shape) < 0.7] = 0
    np.save(directory / "images.npy", levels.astype(np.uint8))
    with single_precision(), working_in(directory):
        make_run(directory / "run", *LAPTOP.split())
        yield directory


def test_laptop_has_a_spike_and_slab_denoiser_of_pixels(started):
    trained = load_trained(started / "run", data_dir=None)
    network = trained.model.network
    assert isinstance(network, eqmdm.SpikeAndSlabDenoiser)
    assert network.network.patch == 1 and trained.options.decay == "cosine"
    assert trained.options.log_snr_range == (-9.0, 20.0)
    assert trained.options.focus == (-3.0, 14.0)
    # The distribution is that of the training images, recorded with the run.
    assert network.pixel.centres == (1 / 256 - 1,)
    share = np.mean(trained.dataset.train == 0)
    assert network.pixel.shares == pytest.approx((share,), rel=1e-12)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        x = jnp.zeros((16, 16, 1))
        return jnp.sum(model.denoise(jnp.zeros(()), x))

    found = jax.device_get(jax.tree.leaves(gradient(trained.model)))
    assert all(np.isfinite(leaf).all() for leaf in found)
    assert any(np.any(leaf != 0) for leaf in found)


def test_likelihood_of_spikes_is_solved_in_log_snr_unless_a_clock_is_given(started):
    trained = load_trained(started / "run", data_dir=None)
    options = EvaluateOptions(run=started / "run")
    assert resolve(options, trained).clock == "log_snr"
    options = EvaluateOptions(run=started / "run", clock="angle")
    assert resolve(options, trained).clock == "angle"


def test_focus_is_where_times_are_denser(started):
    trained = load_trained(started / "run", data_dir=None)
    u, diffusion = (np.arange(2000) + 0.5) / 2000, trained.model.linear_diffusion

    def share(low, high, options):
        """The share of times in a range."""
        sampler = build.build_objective(options, trained.dataset).time_sampler
        t, _ = jax.jit(jax.vmap(lambda u: sampler(diffusion, u)))(u)
        log_snrs = np.asarray(jax.jit(jax.vmap(diffusion.log_snr))(t))
        return np.mean((log_snrs > low) & (log_snrs < high))

    # Of an interval of 29. The table has cells of up to 0.3.
    assert share(-3, 14, trained.options) == pytest.approx(17 / 18.2, abs=0.02)
    flat = dataclasses.replace(trained.options, focus=())
    assert share(-3, 14, flat) == pytest.approx(17 / 29, abs=0.02)
    normal = TrainOptions(dataset="mnist", preconditioning="normal").resolved()
    assert not normal.focus
    # Without the control variate, rare times would make the loss vary more.
    hidden = {"noise": "student-t", "hidden_precision": True}
    for change in (hidden, {"form": "hsm"}):
        assert not TrainOptions(dataset="mnist", **change).resolved().focus


@pytest.mark.slow
def test_laptop_trains_its_denoiser(started):
    train.run(parse(TrainOptions, [*LAPTOP.split(), "--run-dir=finished"]))
    model = load_trained(started / "finished", data_dir=None).model
    samples = eqmdm.sample(model, (16, 16, 1), key=jr.key(0), n_steps=2)
    assert np.all(np.isfinite(samples))


def test_run_with_a_decay_is_not_resumed_with_other_steps(started):
    arguments = [*LAPTOP.split(), "--run-dir=run", "--resume", "--steps=8"]
    options = parse(TrainOptions, arguments)
    assert re.search("--steps.* 6.* 8", error_of(train.run, options))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data=digits"], "--preset must be left out for data that .*digits"),
        (["--data=mixture"], "--preset must be left out for data that .*mixture"),
        (["--steps=2"], "--steps must make more updates than --warmup, 2, .*2 steps"),
        (["--network=mlp", "--patch=2"], "--patch must be 1 for the MLP"),
        (
            ["--score=free", "--preconditioning=spike-and-slab"],
            "--preconditioning must be normal for the free score",
        ),
        (
            ["--snr=vector", "--basis=haar", "--preconditioning=spike-and-slab"],
            "--basis must be pixels .* got haar",
        ),
        (["--time=uniform", "--focus", "-3", "9"], "--focus must be left out unless"),
        (["--focus", "9"], r"--focus must be two increasing.*\(9.0,\)"),
        (["--focus", "9", "-3"], r"--focus must be two increasing.*\(9.0, -3.0\)"),
        (["--patch=3"], r"--patch must divide the sides .*\(16, 16\); got 3"),
    ],
    ids=lambda value: "".join(value[0]) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line_that_names_the_option(arguments, message, started):
    options = parse(TrainOptions, [*LAPTOP.split(), "--run-dir=wrong", *arguments])
    assert re.search(message, error_of(train.run, options))


@pytest.mark.parametrize(
    "levels, n_levels, message",
    [
        (np.arange(768).reshape(3, 16, 16, 1), 768, "no level has half a percent"),
        (None, None, "data that are not in grey levels"),
    ],
)
def test_preconditioning_refuses_data_without_frequent_levels(
    levels, n_levels, message, key
):
    if levels is None:
        dataset = eqmdm.data.Dataset.from_arrays(
            np.ones((9, 2)) * np.arange(9)[:, None]
        )
    else:
        dataset = eqmdm.data.Dataset.from_arrays(levels, n_levels=n_levels)
    options = TrainOptions(dataset="mnist", preset="laptop").resolved()
    with pytest.raises(ValueError, match=message):
        build.DataFacts.of(options, dataset)


@pytest.mark.slow
def test_laptop_trains_a_denoiser_that_is_told_the_level_of_each_pixel(started):
    arguments = [*LAPTOP.split(), "--run-dir=vector", "--snr=vector", "--n-samples=0"]
    train.run(parse(TrainOptions, [*arguments, "--test-examples=0"]))
    model = load_trained(started / "vector", data_dir=None).model
    assert model.takes_snr_vector
    seen = eqmdm.observe.mask(np.arange(256).reshape(16, 16, 1) < 128)
    observation = eqmdm.LinearObservation(
        seen, np.full(128, 1 / 256 - 1), noise_std=0.0
    )
    posterior = model.given(observation, eqmdm.Exact())
    x = eqmdm.sample(posterior, (16, 16, 1), key=jr.key(0), n_steps=2)
    # Without noise, the pixels that are seen are known.
    assert np.allclose(x.reshape(-1)[:128], 1 / 256 - 1, atol=2e-3)


def test_preset_yields_to_the_options_that_are_given():
    options = TrainOptions(dataset="mnist", preset="laptop", width=8).resolved()
    assert options.width == 8 and options.patch == 1
    colour = TrainOptions(dataset="cifar10", preset="laptop").resolved()
    assert colour.preconditioning == "normal" and colour.patch == 2
    plain = TrainOptions(dataset="mnist").resolved()
    assert plain.patch == 1 and plain.decay == "none"


@pytest.mark.parametrize(
    "given, log_snr_range",
    [
        ({}, (-9.0, 20.0)),
        ({"preconditioning": "normal"}, (-9.0, 13.3)),
        ({"dequantisation": "discrete"}, (-9.0, 13.3)),
        ({"log_snr_range": (-8.0, 12.0)}, (-8.0, 12.0)),
        ({"t_range": (1e-3, 1.0)}, None),
        ({"diffusion": "learned"}, None),
    ],
    ids=str,
)
def test_interval_resolves_the_edges_of_dequantised_spikes(given, log_snr_range):
    options = TrainOptions(dataset="mnist", preset="laptop", **given).resolved()
    assert options.log_snr_range == log_snr_range
    assert (options.t_range is None) == (log_snr_range is not None)


@pytest.mark.parametrize(
    "given, preconditioning",
    [
        ({}, "spike-and-slab"),
        ({"snr": "vector"}, "spike-and-slab"),
        ({"preconditioning": "normal"}, "normal"),
        # Where pixels have no levels, or the network is no denoiser of them.
        ({"score": "free"}, "normal"),
        ({"snr": "vector", "basis": "haar"}, "normal"),
        ({"transform": "logit"}, "normal"),
        ({"dataset": "digits"}, "normal"),
        ({"dataset": "cifar10"}, "normal"),
    ],
    ids=str,
)
def test_drawings_have_a_denoiser_of_their_levels(given, preconditioning):
    options = TrainOptions(**({"dataset": "mnist"} | given)).resolved()
    assert options.preconditioning == preconditioning
