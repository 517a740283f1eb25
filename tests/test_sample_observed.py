"""Tests of `eqmdm sample --observe`."""

import json

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from script_runs import POINTS, error_of, load_once, make_run

import eqmdm
from eqmdm import observe
from eqmdm.cli import plots
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program
from eqmdm.cli.sample.observing import observations
from eqmdm.cli.sample.options import SampleOptions


# The purposes of the keys.
SAMPLES, OBSERVATIONS = 5, 9


pytestmark = pytest.mark.usefixtures("in_float32")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


def _options(run, *arguments):
    return parse(SampleOptions, [str(run), *arguments])


def _observed(run, *arguments):
    options = _options(run, *arguments)
    return observations(options, load_once(run, data_dir=None))


def test_samples_are_those_of_the_library_given_the_observation(
    digits, tmp_path, capsys
):
    how = "--observe=mask:top-half", "--observe-image=2,5", "--observe-noise=0.2"
    how += "--steps=2", "--n-samples=3", "--batch-size=2"
    program.run(_options(digits, *how, f"--output-dir={tmp_path}"))
    with np.load(tmp_path / "samples.npz") as file:
        images, settings = file["samples"], json.loads(str(file["settings"]))
    assert images.shape == (2, 3, 8, 8, 1) and images.dtype == np.uint8

    # On the devices of the program, which compiled the same.
    model = load_once(digits, data_dir=None).over_devices(2).model
    test = eqmdm.data.load("digits").test
    key_x, key_noise = jr.split(jr.fold_in(jr.fold_in(jr.key(0), OBSERVATIONS), 5))
    x, _ = eqmdm.GreyLevels(17).encode(test[5], key=key_x)
    seen = np.zeros((8, 8, 1), bool)
    seen[:4] = True
    clean = x[:4].reshape(-1)
    value = clean + 0.2 * jr.normal(key_noise, clean.shape)
    observation = eqmdm.LinearObservation(observe.mask(seen), value, 0.2)
    expected = eqmdm.sample(
        model.given(observation),
        (8, 8, 1),
        key=jr.fold_in(jr.key(0), SAMPLES),
        n_samples=2,
        n_steps=2,
    )
    np.testing.assert_array_equal(
        images[1, :2], np.asarray(eqmdm.GreyLevels(17).decode(expected))
    )
    assert settings["observe"] == "mask:top-half"
    assert settings["method"] == "moment matching, approximate"
    coverage = [score["coverage"] for score in settings["scores"]]
    assert all(0 <= part <= 1 for part in coverage)
    shown = capsys.readouterr().out
    assert "image 2: the mean has a PSNR of" in shown and "image 5:" in shown
    assert "by moment matching, approximate" in shown
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_vector_of_snrs_conditions_exactly(digits, tmp_path, monkeypatch, capsys):
    trained = load_once(digits, data_dir=None)
    normal = eqmdm.VectorDenoiser(lambda log_snr, z: z * jax.nn.sigmoid(log_snr))
    model = eqmdm.DenoiserModel(normal, trained.model.diffusion)
    replaced = type(trained)(**(vars(trained) | {"model": model}))
    monkeypatch.setattr(program, "load_trained", lambda *_, **__: replaced)
    monkeypatch.setattr(plots, "posteriors", lambda path, *_: path.touch())
    how = "--observe=mask:left-half", "--steps=2", "--n-samples=2"
    how += "--observe-method=exact", "--observe-noise=0"
    program.run(_options(digits, *how, f"--output-dir={tmp_path}"))
    assert "by exact, dpm" in capsys.readouterr().out
    with np.load(tmp_path / "samples.npz") as file:
        images = file["samples"]
    # Without noise the pixels that are seen are those of the image.
    test = eqmdm.data.load("digits").test
    np.testing.assert_array_equal(
        images[0, :, :, :4], np.broadcast_to(test[0, :, :4], (2, 8, 4, 1))
    )


def test_block_means_are_exact_in_a_haar_basis(digits, tmp_path, monkeypatch, capsys):
    trained = load_once(digits, data_dir=None)
    basis = eqmdm.HaarBasis((8, 8, 1))
    network = lambda level, z, *, noise_levels, filtered: jnp.zeros_like(z)
    denoiser = eqmdm.PreconditionedDenoiser(network, 1.0, (-12.0, 14.0), basis)
    model = eqmdm.DenoiserModel(denoiser, trained.model.diffusion)
    replaced = type(trained)(**(vars(trained) | {"model": model}))
    monkeypatch.setattr(program, "load_trained", lambda *_, **__: replaced)
    monkeypatch.setattr(plots, "posteriors", lambda path, *_: path.touch())
    how = "--observe=downsample:2", "--steps=2", "--n-samples=2"
    how += "--observe-method=exact", "--observe-noise=0", "--observe-image=1"
    program.run(_options(digits, *how, f"--output-dir={tmp_path}"))
    assert "by exact, dpm" in capsys.readouterr().out
    with np.load(tmp_path / "samples.npz") as file:
        images = file["samples"].astype(float)
    means = lambda image: image.reshape(-1, 4, 2, 4, 2).mean((2, 4))
    test = eqmdm.data.load("digits").test[1].astype(float)
    # Decoding rounds each of four pixels to one of 17 levels, and clips those outside:
    # within half a level of the mean if none of the block is clipped.
    inside = (images > 0) & (images < 16)
    whole = inside.reshape(-1, 4, 2, 4, 2).all((2, 4))
    assert whole.any()
    error = np.abs(means(images) - means(test))[whole]
    # The truth is dequantised, by up to a level.
    assert error.max() <= 1.0


def _image(observed):
    return observed.truth[..., 0]


@pytest.mark.parametrize(
    "what, expected",
    [
        ("mask:left-half", lambda x: np.where(np.arange(8)[None] < 4, x, np.nan)),
        (
            "mask:center:2",
            lambda x: np.where(
                np.isin(np.arange(8), [3, 4])[:, None]
                & np.isin(np.arange(8), [3, 4])[None],
                np.nan,
                x,
            ),
        ),
        (
            "downsample:2",
            lambda x: np.kron(x.reshape(4, 2, 4, 2).mean((1, 3)), np.ones((2, 2))),
        ),
        ("blur:1e-3", lambda x: x),
    ],
)
def test_what_is_seen_is_part_of_the_image(digits, what, expected):
    (observed,) = _observed(digits, f"--observe={what}", "--observe-noise=0")
    # Rounding of means in float32.
    np.testing.assert_allclose(
        observed.shown[..., 0], expected(_image(observed)), atol=1e-5
    )


def test_a_fraction_of_the_pixels_is_seen(digits):
    (observed,) = _observed(digits, "--observe=mask:random:0.25")
    assert np.isfinite(observed.shown).sum() == 16
    (other,) = _observed(digits, "--observe=mask:random:0.25", "--seed=1")
    assert (np.isnan(observed.shown) != np.isnan(other.shown)).any()


def test_an_observation_is_read_from_a_file(digits, tmp_path):
    path, A = tmp_path / "seen.npz", np.eye(64)[:3]
    np.savez(path, A=A, o=np.asarray([0.1, -0.2, 0.3]), noise_std=0.5)
    (observed,) = _observed(digits, f"--observe={path}")
    assert observed.truth is None
    x = jnp.arange(64.0).reshape(8, 8, 1)
    np.testing.assert_array_equal(observed.observation.project(x), [0.0, 1.0, 2.0])
    np.testing.assert_allclose(observed.observation.noise.std, 0.5)
    np.testing.assert_allclose(observed.shown.reshape(-1)[:3], [0.1, -0.2, 0.3])


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--observe=half"], "--observe must be mask:left-half"),
        (["--observe=mask:half"], "--observe must be mask:left-half"),
        (["--observe=mask:center:8"], "with N from 1 to 7"),
        (["--observe=mask:random:2"], "FRACTION above 0 and below 1"),
        (["--observe=downsample:3"], "which is wrong: `factor` must be"),
        (["--observe=blur:x"], "--observe must be mask:left-half"),
        (["--observe=missing.npz"], "--observe must be a file that can be read"),
        (["--observe=mask:left-half", "--observe-noise=-1"], "--observe-noise must"),
        (["--observe=mask:left-half", "--observe-image=9999"], "--observe-image must"),
        (["--observe-noise=0.3"], "--observe-noise must come with an --observe"),
        (
            ["--observe=mask:left-half", "--observe-method=exact"],
            "--observe-method must not be exact for this run",
        ),
    ],
)
def test_wrong_options_end_in_one_line(digits, arguments, match, tmp_path):
    options = _options(digits, *arguments, f"--output-dir={tmp_path / 'out'}")
    assert match in error_of(program.run, options)


def test_a_file_without_an_observation_is_refused(digits, tmp_path):
    path = tmp_path / "seen.npz"

    def error(**parts):
        np.savez(path, **parts)
        options = _options(digits, f"--observe={path}", f"--output-dir={tmp_path}/out")
        return error_of(program.run, options)

    assert "must be a file with a matrix A and numbers o" in error(x=np.ones(3))
    assert "must hold a matrix A: `matrix` must" in error(A=np.eye(3), o=np.ones(3))
    wrong = error(A=np.eye(64)[:3], o=np.ones(2))
    assert "must give an observation: `value` must have the shape" in wrong


def test_points_have_no_observations(tmp_path):
    run = make_run(tmp_path / "run", *POINTS)
    options = _options(run, "--observe=mask:left-half")
    assert "--observe must be left out for this run" in error_of(program.run, options)


def test_transformed_pixels_have_no_observations(logit_digits):
    options = _options(logit_digits, "--observe=mask:left-half")
    assert "sees pixels by the logit transform" in error_of(program.run, options)
