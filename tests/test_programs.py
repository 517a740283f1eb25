"""Tests of what all programs share: names, help, errors and dependencies."""

import dataclasses
import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from script_runs import SCRIPTS

from eqmdm.cli import entry, errors
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.fields import check_at_least, with_option_names
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.solver_study.options import SolverStudyOptions
from eqmdm.cli.train.options import DEFAULTS, TrainOptions
from helpers import slow


OPTIONS = TrainOptions, EvaluateOptions, SampleOptions, SolverStudyOptions


def _python(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
    )


# --- Names ---------------------------------------------------------------------------


def test_each_script_is_a_program_of_the_same_name():
    names = {path.stem.replace("_", "-") for path in SCRIPTS.glob("*.py")}
    assert names == set(entry.PROGRAMS)


def test_programs_are_listed_without_a_name(capsys):
    entry.main([])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in entry.PROGRAMS)


def test_wrong_name_is_one_that_was_meant():
    with pytest.raises(SystemExit) as stopped:
        entry.main(["trian"])
    first = str(stopped.value.code).splitlines()[0]
    assert first.startswith("error: 'trian'") and "Did you mean train" in first


@pytest.mark.parametrize("name", entry.PROGRAMS)
def test_help_shows_the_programs_name_and_options(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        entry.main([name, "--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: eqmdm {name} [-h]")
    assert "(default: None)" not in shown and "{None}" not in shown
    assert "(default: )" not in shown and " o-d-e " not in shown
    # A text is shown once, and its sentences are not broken where the source is.
    _, *parts = [part.strip() for part in shown.split("\n\n")]
    is_box = lambda part: "--help" in part or "positional arguments" in part
    text = list(itertools.takewhile(lambda part: not is_box(part), parts))
    assert text and "\n" not in "".join(text)
    assert shown.count(text[0]) == 1


# --- Help ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", entry.PROGRAMS)
def test_help_waits_for_no_heavy_package(name):
    program = """
        import sys
        from eqmdm.cli.entry import main

        try:
            main([sys.argv[1], "--help"])
        except SystemExit:
            heavy = {"jax", "equinox", "diffrax", "orbax", "matplotlib", "sklearn"}
            assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    done = _python(program, name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", OPTIONS, ids=lambda cls: cls.__name__)
def test_every_option_is_explained_in_the_help(options, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        parse(options, ["--help"])
    shown = capsys.readouterr().out
    for field in dataclasses.fields(options):
        lines = [line for line in shown.splitlines() if f"--{_dashed(field)}" in line]
        assert lines or field.metadata["metavar"] in shown


def _dashed(field):
    return field.name.replace("_", "-")


def test_help_of_training_shows_the_default_for_each_data_set(capsys):
    with pytest.raises(SystemExit):
        parse(TrainOptions, ["--help"])
    _, table = capsys.readouterr().out.split("defaults by data set:\n")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line}
    columns = ["digits", "mnist", "cifar10", "mixture"]
    for option in ("steps", "batch_size", "learning_rate", "ema_decay"):
        shown = rows["--" + option.replace("_", "-")]
        for column, value in zip(columns, shown, strict=True):
            options = parse(TrainOptions, [f"--dataset={column}"]).resolved()
            assert float(value) == getattr(options, option)
    assert all(name in table for name in DEFAULTS)


def test_groups_of_options_are_one_flat_class():
    arguments = "--dataset=rings --width=8 --t-range 0.001 1 --no-remat --seed=3"
    options = parse(TrainOptions, arguments.split())
    assert (options.dataset, options.width, options.seed) == ("rings", 8, 3)
    assert options.t_range == (0.001, 1.0) and options.steps is None
    study = parse(SolverStudyOptions, ["run", "--evaluations=5,10", "--solvers=sea"])
    assert study.evaluations == (5, 10) and study.solvers == ("sea",)


# --- Errors --------------------------------------------------------------------------


def test_errors_name_options_as_they_are_given():
    message = "`batch_size` must suit `run` and `no_option`; got 3."
    expected = "--batch-size must suit RUN and `no_option`; got 3."
    assert with_option_names(message, EvaluateOptions) == expected


@pytest.mark.parametrize(
    "message, expected",
    [
        ("Resume with batch_size=3.", "Resume with --batch-size=3."),
        # Library calls, and names that are not options.
        ("f(batch_size=3), `g(seed=1)`, x=2", "f(batch_size=3), `g(seed=1)`, x=2"),
        ("Pass `data_dir` (--data-dir) too.", "Pass --data-dir too."),
    ],
)
def test_errors_show_values_as_they_are_given(message, expected):
    assert with_option_names(message, EvaluateOptions) == expected


def test_option_below_its_minimum_is_refused():
    options = SampleOptions(run=Path("run"), steps=0)
    with pytest.raises(ValueError, match="`steps` must be at least 1; got 0"):
        check_at_least(options, {"seed": 0, "steps": 1})


# --- Output that is not read ---------------------------------------------------------


def _unread(*arguments):
    """A program whose output nobody reads: the other end of its pipe is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, "-m", "eqmdm.cli", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize("unbuffered", ["", slow("1")])
@pytest.mark.parametrize("name", [None, *entry.PROGRAMS])
def test_help_that_is_not_read_is_no_error(name, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    done = _unread("--help") if name is None else _unread(name, "--help")
    assert done.stderr == ""
    # The status of a normal exit, or of a program that SIGPIPE killed.
    assert done.returncode in (0, 141)


def test_program_that_is_not_read_ends_without_a_traceback(tmp_path):
    (tmp_path / "tiny.toml").write_text(
        'train = { dataset = "mixture" }\n[grids.one]\n[evaluations.bound]\n'
    )
    done = _unread("study", str(tmp_path / "tiny.toml"), "--dry-run")
    assert (done.stderr, done.returncode) == ("", 141)


def test_error_is_shown_where_the_output_is_not_read(tmp_path):
    done = _unread("compare-evaluations", str(tmp_path))
    assert done.stderr.startswith("error: DIRECTORY must be two or more")
    assert done.returncode == 1


@pytest.mark.parametrize("wrap", [errors.clean_errors, errors.clean_file_errors])
def test_closed_pipe_is_no_error_of_the_users(wrap):
    arguments = (OPTIONS[0],) if wrap is errors.clean_errors else ()
    with pytest.raises(BrokenPipeError), wrap(*arguments):
        raise BrokenPipeError


# --- Dependencies --------------------------------------------------------------------

# As if the extra were not installed.
_WITHOUT = """
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {missing!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Missing())
"""


@pytest.mark.parametrize(
    "missing, arguments",
    [
        ("tyro", ["train", "--dataset=digits"]),
        ("tqdm", ["sample", "run"]),
        ("matplotlib", ["evaluate", "run"]),
    ],
)
def test_program_says_which_extra_it_needs(missing, arguments, tmp_path):
    program = textwrap.dedent(_WITHOUT.format(missing=(missing,)))
    program += "from eqmdm.cli.entry import main\nmain(sys.argv[1:])\n"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: the program {arguments[0]} needs {missing}, ")
    assert line.endswith("pip install 'eqmdm[programs]'")


def test_data_set_says_which_extra_it_needs():
    program = textwrap.dedent(_WITHOUT.format(missing=("sklearn",)))
    program += "import eqmdm\neqmdm.data.load('digits')\n"
    last = _python(program).stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: The data set digits is scikit-learn's")
    assert last.endswith("pip install 'eqmdm[programs]'")


def test_library_needs_nothing_of_the_programs():
    missing = "tyro", "tqdm", "matplotlib", "sklearn"
    program = textwrap.dedent(_WITHOUT.format(missing=missing))
    program += "from eqmdm import *\n"
    done = _python(program)
    assert done.returncode == 0, done.stderr
