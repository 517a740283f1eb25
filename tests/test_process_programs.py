"""The noise and the start of a process in the programs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from script_runs import POINTS, copy_run, load_once

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.diffusions import ends_are_learned
from eqmdm.cli.evaluate import program as evaluate_program
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program as sample_program
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.train.options import TrainOptions


pytestmark = pytest.mark.usefixtures("in_float32", "no_pictures")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(evaluate_program, "load_trained", load_once)
    monkeypatch.setattr(sample_program, "load_trained", load_once)


def test_run_with_student_t_noise_goes_through_the_programs(tmp_path):
    run = copy_run(tmp_path / "run", *POINTS, "--noise=student-t", "--nu=3")
    model = eqmdm.load_run(run)
    assert isinstance(model, eqmdm.StudentTModel) and (model.nu, model.hidden) == (3, 0)
    # The network is trained on the precisions, too.
    assert (
        model.model.log_snr_range[0] < float(model.diffusion.log_snr(jnp.ones(()))) - 4
    )
    arguments = ["--n-samples=3", "--steps=2", f"--output-dir={tmp_path / 'samples'}"]
    sample_program.run(parse(SampleOptions, [str(run), *arguments]))
    assert (tmp_path / "samples" / "samples.npz").exists()
    shared = eqmdm.save_pretrained(model, tmp_path / "shared", run_dir=run)
    assert isinstance(eqmdm.load_pretrained(shared), eqmdm.StudentTModel)


def resolved(*arguments):
    options = parse(TrainOptions, ["--dataset=mixture", *arguments])
    return options.resolved()


def built(*arguments):
    options = resolved("--width=8", "--n-blocks=1", *arguments)
    diffusion = build.build_diffusion(options, jr.key(0))
    return build.build_model(
        options, build.DataFacts((2,), None, 0.7), diffusion, jr.key(1)
    )


def test_options_build_the_model_that_they_name():
    hidden = built("--noise=student-t", "--score=free", "--hidden-precision")
    assert hidden.hidden and hidden.nu == 4.0
    start = built("--start=conditioned", "--score=free", "--diffusion=cld")
    assert isinstance(start, eqmdm.ConditionedStartModel)
    assert start.mean(jnp.ones(2)).shape == (1, 2)
    # As it was without the options.
    assert isinstance(built("--score=free"), eqmdm.NoiseModel)
    assert resolved().nu is None


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--nu=3"], "`nu` must be left out without --noise student-t"),
        (["--hidden-precision"], "`hidden_precision` must be left out without"),
        (["--noise=student-t", "--nu=-1"], "`nu` must be positive and finite; got -1"),
        (
            ["--noise=student-t", "--nu=2", "--hidden-precision"],
            "`nu` must be above 2 with --hidden-precision",
        ),
        (["--noise=student-t", "--score=free"], "`hidden_precision` must be given"),
        (["--start=conditioned"], "`start` must be left out for the denoiser score"),
        (
            "--start=conditioned --score=free --noise=student-t".split()
            + ["--hidden-precision"],
            "`start` must be left out with --noise student-t",
        ),
        (
            ["--start=conditioned", "--score=free", "--diffusion=vpsde"],
            "`start` must be left out for a diffusion without auxiliary variables",
        ),
    ],
)
def test_contradicting_options_are_refused_by_name(arguments, match):
    with pytest.raises(ValueError, match=match):
        built(*arguments)


@pytest.mark.parametrize("end, learned", [(1.0, False), (0.5, True)])
def test_denoiser_has_a_margin_where_the_ends_are_learned(end, learned):
    interval = eqmdm.TimeInterval(1e-3, 1.0)
    schedule = eqmdm.LearnedSchedule(interval=eqmdm.TimeInterval(1e-3, end))
    fixed = eqmdm.VPSDE(interval=interval)
    diffusion = eqmdm.VPSDE(schedule=schedule, interval=interval)
    assert ends_are_learned(diffusion) == learned
    banded = eqmdm.BandedDiffusion([fixed, diffusion], [0, 1])
    assert ends_are_learned(banded) == learned
    assert not ends_are_learned(fixed)
    assert ends_are_learned(eqmdm.LearnedDiffusion(2, key=jr.key(0)))
    options = resolved("--width=8", "--n-blocks=1")
    data = build.DataFacts((2,), None, 0.7)
    low, high = build.build_model(options, data, diffusion, jr.key(1)).log_snr_range
    log_snr = jax.jit(lambda t: diffusion.log_snr(t))
    ends = log_snr(diffusion.t1), log_snr(diffusion.t0)
    assert (low < ends[0] - 10) == (high > ends[1] + 1) == learned
