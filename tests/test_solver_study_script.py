import json
import shutil

import diffrax as dfx
import jax.random as jr
import numpy as np
import pytest
from script_runs import (
    POINTS,
    copy_run,
    load_once,
    make_newer,
    make_run,
)
from solver_studies import error, rows_of, study, use_known_samples

import eqmdm
from eqmdm.cli.solver_study import program


# The purposes of the keys.
SAMPLES, DIRECTIONS, HELD_OUT = 5, 7, 8
# Every solver and count is a program of its own, and takes seconds to compile.
REAL = "--solvers=dpm --evaluations=4,12 --n-samples=60 --reference-samples=20 "
REAL += "--reference-steps=100"
REAL = REAL.split()
# Two batches a row, and a solver that cannot do with four evaluations.
STUDY = "--solvers=dpm,euler,tsit5 --evaluations=4,15 --n-samples=60 "
STUDY += "--batch-size=40 --reference-samples=20"
STUDY = STUDY.split()
TIGHT = eqmdm.DiffraxSampler(
    dfx.Tsit5(),
    eqmdm.probability_flow,
    stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
)
KEYS = [(solver, n) for solver in ("dpm", "euler", "tsit5") for n in (4, 15)]


pytestmark = pytest.mark.usefixtures("in_float32")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of an untrained denoiser, which knows only the scale of the data."""
    return copy_run(tmp_path_factory.mktemp("points") / "run", *POINTS)


@pytest.fixture(scope="module")
def free_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("free") / "run"
    return copy_run(directory, *POINTS, "--score=free")


@pytest.fixture
def sampler(monkeypatch):
    return use_known_samples(monkeypatch)


def test_samples_are_compared_with_data_and_with_a_tight_solution(run):
    study(run, *REAL)
    rows = rows_of(run / "solver_study")
    coarse, fine = (rows["vpsde", "dpm", n] for n in (4, 12))
    assert float(fine["reference_rms"]) < float(coarse["reference_rms"]) / 4
    trained = load_once(run, data_dir=None)
    dataset = trained.dataset
    held_out = np.concatenate([dataset.validation, dataset.test])
    key_samples, key_directions, key_choice = (
        jr.fold_in(jr.key(0), i) for i in (SAMPLES, DIRECTIONS, HELD_OUT)
    )
    chosen = eqmdm.data.shuffled_indices(key_choice, 0, 120, len(held_out))
    assert len(set(chosen.tolist())) == 120
    chosen, others = chosen[:60], held_out[chosen[60:]]
    x = eqmdm.sample(
        # On the devices of the program, which compiled the same.
        trained.over_devices(60).model,
        (2,),
        key=key_samples,
        n_samples=60,
        n_steps=11,
        sampler=eqmdm.DPMSolver(),
        dtype=np.float32,
    )
    floor = rows["", "real data", 0]
    for row, examples in ((fine, x), (floor, others)):
        sets = examples, held_out[chosen]
        for name, figures in (
            ("sliced_wasserstein", eqmdm.sliced_wasserstein(*sets, key=key_directions)),
            ("squared_mmd", eqmdm.maximum_mean_discrepancy(*sets)),
        ):
            found = float(row[name]), float(row[f"{name}_error"])
            # Sums in another order, in float32.
            np.testing.assert_allclose(found, figures, rtol=1e-4)
    settings = json.loads((run / "solver_study" / "settings.json").read_text())
    assert (settings["n_held_out"], settings["real_data"]) == (60, "held out")
    assert (run / "solver_study" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_study_has_a_row_for_each_solver_and_count(run, sampler, tmp_path):
    study(run, *STUDY, f"--output-dir={tmp_path}")
    rows = rows_of(tmp_path)
    assert set(rows) == {("", "real data", 0), *(("vpsde", *key) for key in KEYS)}
    failed = rows.pop(("vpsde", "tsit5", 4))
    assert failed["failure"] == "--evaluations must be at least 8"
    assert failed["steps"] == failed["sliced_wasserstein"] == ""
    real = rows.pop(("", "real data", 0))
    evaluations = {"dpm": lambda n: n + 1, "euler": lambda n: n + 1}
    # Six a step, the last of which is the first of the next, and one at either end.
    evaluations["tsit5"] = lambda n: 6 * n + 2
    for (_, solver, allowed), row in rows.items():
        n_steps = int(row["steps"])
        assert int(row["evaluations"]) == evaluations[solver](n_steps) <= allowed
        assert evaluations[solver](n_steps + 1) > allowed
        assert float(row["sliced_wasserstein"]) > float(real["sliced_wasserstein"]) > 0
        # Noise leads elsewhere; points have no features.
        assert (row["reference_rms"] == "") == (solver == "euler")
        assert row["frechet"] == row["failure"] == ""
        assert float(row["seconds"]) > 0


def test_distance_to_the_tight_solution_is_the_root_mean_square(run, sampler, tmp_path):
    study(run, *STUDY, f"--output-dir={tmp_path}")
    rows = rows_of(tmp_path)
    for solver, n_steps in (("dpm", 14), ("tsit5", 2)):
        row = rows["vpsde", solver, 15]
        # Of squares 9 and 16, with the standard error of the mean of 20.
        rms = np.sqrt(12.5) / n_steps
        error = np.std([9, 16] * 10, ddof=1) / np.sqrt(20) / n_steps**2 / (2 * rms)
        found = float(row["reference_rms"]), float(row["reference_rms_error"])
        # Samples in float32.
        np.testing.assert_allclose(found, (rms, error), rtol=1e-5)


@pytest.mark.parametrize(
    "solver, tight",
    [
        ("edm-heun", eqmdm.DPMSolver(order=3)),
        ("dpm", eqmdm.DPMSolver(order=3)),
        ("ode-heun", TIGHT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tight_solution_is_of_what_the_solver_solves(
    solver, tight, run, sampler, tmp_path
):
    options = f"--solvers={solver}", "--evaluations=9", f"--output-dir={tmp_path}"
    study(run, *STUDY[2:], *options)
    calls = [how for _, how in sampler.calls if repr(how["sampler"]) == repr(tight)]
    (how,) = calls
    assert (how["first"], how["n_samples"]) == (0, 20)
    assert how.get("n_steps") == (None if tight is TIGHT else 1000)


def test_free_score_has_a_tight_solution_too(free_run, sampler, tmp_path):
    options = "--solvers=dpm", "--evaluations=9", f"--output-dir={tmp_path}"
    study(free_run, *STUDY[2:], *options)
    samplers = {repr(how["sampler"]) for _, how in sampler.calls}
    assert repr(eqmdm.DPMSolver(order=3)) in samplers
    assert float(rows_of(tmp_path)["vpsde", "dpm", 9]["reference_rms"]) > 0


def test_batches_number_their_samples_and_share_the_key(run, sampler, tmp_path):
    options = "--solvers=euler", "--evaluations=5", "--grid=rho"
    study(run, *STUDY[2:], *options, f"--output-dir={tmp_path}")
    assert [how["first"] for _, how in sampler.calls] == [0, 40]
    assert [how["n_samples"] for _, how in sampler.calls] == [40, 40]
    keys = [jr.key_data(how["key"]).tolist() for _, how in sampler.calls]
    assert keys[0] == keys[1]
    grids = {type(how["sampler"].grid) for _, how in sampler.calls}
    assert grids == {eqmdm.RhoGrid}


def test_row_that_fails_is_kept_and_says_why(run, sampler, tmp_path, capsys):
    options = "--solvers=sscs,ancestral,euler", "--evaluations=5"
    study(run, *STUDY[2:], *options, f"--output-dir={tmp_path}")
    rows = rows_of(tmp_path)
    assert rows["vpsde", "sscs", 5]["failure"] == "no law"
    lost = rows["vpsde", "ancestral", 5]
    assert lost["failure"] == "1 of 60 samples are not finite"
    assert lost["evaluations"] == "5" and lost["sliced_wasserstein"] == ""
    assert rows["vpsde", "euler", 5]["failure"] == ""
    assert "failed: no law" in capsys.readouterr().out


def test_study_that_was_cut_off_goes_on_where_it_was(run, sampler, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    study(run, *STUDY, f"--output-dir={whole}")
    shutil.copytree(whole, cut)
    # Within the last line but two, as a kill may have left it.
    lines = (whole / "study.csv").read_text().splitlines(keepends=True)
    (cut / "study.csv").write_text("".join(lines[:-3]) + lines[-3][:20])
    sampler.calls.clear()
    study(run, *STUDY, f"--output-dir={cut}")
    # Two of Euler's batches, and Tsit5's with its tight solution.
    assert len(sampler.calls) == 5
    before, after = rows_of(whole), rows_of(cut)
    assert list(before) == list(after)
    for key, row in before.items():
        assert row | {"seconds": ""} == after[key] | {"seconds": ""}
    # A complete study is only redrawn.
    sampler.calls.clear()
    text = (cut / "study.csv").read_text()
    study(run, *STUDY, f"--output-dir={cut}")
    assert not sampler.calls
    assert (cut / "study.csv").read_text() == text


def test_study_is_extended_but_not_continued_with_other_settings(
    run, sampler, tmp_path, capsys
):
    output = f"--output-dir={tmp_path}"
    study(run, *STUDY, "--solvers=euler", output)
    n_before = len(rows_of(tmp_path))
    study(run, *STUDY, "--evaluations=30", output)
    assert len(rows_of(tmp_path)) == n_before + 3
    line = error(run, *STUDY, "--seed=1", output)
    assert "--seed must be 0" in line and "got 1" in line


def test_clock_is_for_solvers_of_diffrax(run, sampler, tmp_path):
    options = "--solvers=euler,dpm", "--evaluations=5", "--clock=angle"
    study(run, *STUDY[2:], *options, f"--output-dir={tmp_path}")
    samplers = [how["sampler"] for _, how in sampler.calls]
    clocks = {type(s.clock) for s in samplers if isinstance(s, eqmdm.DiffraxSampler)}
    assert clocks == {eqmdm.AngleClock}
    line = error(run, "--solvers=dpm,sscs", "--clock=angle")
    assert "--clock must be time for dpm, sscs" in line and "got angle" in line
    line = error(run, *STUDY, "--clock=log_snr", "--diffusions=vpsde,alda")
    assert "--clock must be time for alda" in line and "got log_snr" in line


def test_denoiser_is_studied_between_the_same_ends(run, sampler, tmp_path):
    options = "--solvers=euler", "--evaluations=5", "--diffusions=vpsde,psld"
    study(run, *STUDY[2:], *options, f"--output-dir={tmp_path}")
    assert {key[0] for key in rows_of(tmp_path)} == {"", "vpsde", "psld"}
    own, other = sampler.calls[0][0], sampler.calls[-1][0]
    assert isinstance(own, eqmdm.VPSDE) and isinstance(other, eqmdm.PSLD)
    for ends in ("t0", "t1"):
        found, expected = (d.log_snr(getattr(d, ends)) for d in (other, own))
        # The search is in float32.
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    "arguments, messages",
    [
        (
            ["--solvers=edm-hun"],
            [
                "--solvers must be the name of a solver",
                "'edm-hun'",
                "Did you mean edm-heun",
            ],
        ),
        (["--solvers=ode-sea"], ["must be an ODE solver", "'ode-sea'", "Use sea"]),
        (
            ["--solvers=sea,tsit5", "--evaluations=7,3"],
            ["--evaluations must be at least 8 for tsit5", "got 7", "leave out tsit5"],
        ),
        (["--seed=-1"], ["--seed must be at least 0; got -1"]),
        (["--batch-size=0"], ["--batch-size must be at least 1; got 0"]),
        (["--solvers="], ["--solvers must name at least one"]),
        (["--evaluations=0,5"], ["--evaluations must be at least 1 each; got 0"]),
        (
            ["--diffusions=clf"],
            ["--diffusions must be names of", "Did you mean cld? The names are vpsde"],
        ),
        (["--diffusions=learned"], ["--diffusions must not be learned"]),
        (["--n-samples=39"], ["--n-samples must be at least 40"]),
        (["--n-samples=100001"], ["--n-samples must be at most 100000"]),
        (["--features=none:none"], ["--features must be left out for mixture"]),
    ],
    ids=lambda value: value[0].strip("-"),
)
def test_wrong_option_is_one_clear_line(arguments, messages, run, capsys):
    line = error(run, *arguments)
    assert all(message in line for message in messages)


def test_directory_of_something_else_is_refused(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = error(run, *STUDY, f"--output-dir={tmp_path}")
    assert "--output-dir must be new, empty or hold the study" in line


def test_run_that_cannot_be_studied_is_refused(run, tmp_path, capsys):
    assert "has no options.json" in error(tmp_path / "nothing")
    bare = make_run(tmp_path / "bare", *POINTS, checkpoint=False)
    assert "must have a checkpoint" in error(bare)
    newer = make_newer(shutil.copytree(run, tmp_path / "newer"))
    assert "newer eqmdm" in error(newer)


def test_free_score_is_studied_as_it_was_trained_only(free_run, capsys):
    line = error(free_run, "--solvers=sea,edm-heun")
    assert "must not include edm-heun" in line and "dpm" in line
    line = error(free_run, "--solvers=sea", "--diffusions=vpsde,cld")
    assert "must be vpsde alone" in line and "got cld" in line
