"""No file that is read can make the program run code: nothing is unpickled, and no
script that lies beside data is imported."""

import ast
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from script_runs import POINTS, SCRIPTS, copy_run, single_precision

import eqmdm
from eqmdm.cli.evaluate import comparison, program as evaluate
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program as sample
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.study import program as study
from eqmdm.cli.study.options import StudyOptions
from eqmdm.cli.train import program as train
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.train_classifier import classifier
from helpers import imported_names
from image_files import random_images, write_images


FILES = sorted([*Path(eqmdm.__file__).parent.rglob("*.py"), *SCRIPTS.glob("*.py")])
# Modules that turn a file, or bytes, into code or objects of any class.
LOADERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
LOADERS |= {"runpy", "code", "codeop"}
RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
# Forbidden as attributes of a module too.
IMPORTERS = {"import_module", "exec_module", "load_module", "resolve_name"}
# The user's own code, given as `module:name`.
ALLOWED = {"own.py": {"import_module"}}
# The builder of a run, one of a few names of this package.
ALLOWED |= {"load.py": {"resolve_name"}}


class _Payload:
    """An object that makes a directory when it is unpickled."""

    def __init__(self, marker):
        self._marker = str(marker)

    def __reduce__(self):
        import os

        return os.mkdir, (self._marker,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "run by the file"


@pytest.fixture
def payload(marker):
    """A pickle with a visible effect, which is checked here."""
    content = pickle.dumps(_Payload(marker))
    pickle.loads(content)
    assert marker.is_dir()
    marker.rmdir()
    return content


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with single_precision():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("hostile") / "run", *POINTS)


@pytest.fixture
def run_dir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _object_array(marker):
    """An array file of objects, which NumPy would unpickle if allowed."""
    file = io.BytesIO()
    np.save(file, np.array([_Payload(marker)], object), allow_pickle=True)
    return file.getvalue()


def _object_archive(marker):
    file = io.BytesIO()
    array = np.array([_Payload(marker)], object)
    np.savez(file, facts=array, weights_0=array)
    return file.getvalue()


def _error(capsys, main, options, *arguments):
    """The line that a program ends with, given its command line."""
    with pytest.raises(SystemExit) as stopped:
        main(parse(options, [str(argument) for argument in arguments]))
    assert stopped.value.code not in (0, None)
    message = str(stopped.value.code)
    assert message.startswith("error: ") and "Traceback" not in message
    return message + capsys.readouterr().out


def _resume(capsys, run_dir):
    arguments = (*POINTS, f"--run-dir={run_dir}", "--resume")
    return _error(capsys, train.run, TrainOptions, *arguments)


def _evaluate(capsys, run_dir):
    return _error(capsys, evaluate.run, EvaluateOptions, run_dir, "--examples=4")


def _sample(capsys, run_dir):
    return _error(capsys, sample.run, SampleOptions, run_dir, "--n-samples=2")


programs = pytest.mark.parametrize(
    "program", [_resume, _evaluate, _sample], ids=["train", "evaluate", "sample"]
)
contents = pytest.mark.parametrize("content", ["pickle", "array", "archive"])


def _content(content, payload, marker):
    make = {"array": _object_array, "archive": _object_archive}
    return payload if content == "pickle" else make[content](marker)


@programs
@contents
def test_options_that_are_code_are_refused(
    program, content, run_dir, payload, marker, capsys
):
    (run_dir / "options.json").write_bytes(_content(content, payload, marker))
    error = program(capsys, run_dir)
    assert "must hold the options" in error and "options.json" in error
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"options": 1}', "[" * 100_000],
    ids=["no", "list", "one", "deep"],
)
def test_options_that_are_none_are_refused(text, run_dir, capsys):
    (run_dir / "options.json").write_text(text)
    assert "--run-dir must hold the options" in _resume(capsys, run_dir)


# Orbax abandons its other reads where one fails, which Python reports later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@programs
def test_checkpoint_that_is_code_is_refused(program, run_dir, payload, marker, capsys):
    step = run_dir / "checkpoints" / "0"
    files = [path for path in step.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        path.write_bytes(payload)
    # As written by a library that pickles.
    for name in ("checkpoint", "checkpoint.pkl", "state.pickle", "model.pt"):
        (step / name).write_bytes(payload)
    error = program(capsys, run_dir)
    assert "must hold a checkpoint that can be read" in error
    assert "only damaged ones (step 0" in error
    assert not marker.exists()


def test_builder_that_is_of_no_program_is_never_called(run_dir, marker):
    path = run_dir / "options.json"
    record = json.loads(path.read_text())
    for builder in ("os:mkdir", "eqmdm.os:mkdir", "eqmdm.cli.build:os.mkdir"):
        hostile = record | {"builder": builder, "options": {"path": str(marker)}}
        path.write_text(json.dumps(hostile))
        with pytest.raises(ValueError, match="`builder` must be one of this package"):
            eqmdm.load_run(run_dir)
    assert not marker.exists()


def _write_digits(folder):
    images = random_images(0, 30, (28, 28, 1))
    write_images(folder / "train-0.parquet", images, "image")
    write_images(folder / "test-0.parquet", images[:5], "image")
    return folder


@contents
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "files"])
def test_data_that_are_code_are_refused(content, in_memory, payload, marker, tmp_path):
    folder = _write_digits(tmp_path / "data")
    (folder / "train-0.parquet").write_bytes(_content(content, payload, marker))
    with pytest.raises(ValueError, match="train-0.parquet` must be a complete Parquet"):
        eqmdm.data.load("mnist", data_dir=folder, in_memory=in_memory)
    assert not marker.exists()


def test_image_that_is_code_is_refused(payload, marker, tmp_path):
    folder = _write_digits(tmp_path / "data")
    for image in (payload, _object_array(marker)):
        write_images(folder / "train-0.parquet", [image] * 3, "image")
        with pytest.raises(ValueError, match="train-0.parquet` must be an image"):
            eqmdm.data.load("mnist", data_dir=folder)
    assert not marker.exists()


def test_schema_that_carries_code_is_not_read(payload, marker, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # The metadata from which pandas, `datasets` and extension types rebuild objects.
    folder = _write_digits(tmp_path / "data")
    keys = ("huggingface", "pandas", "ARROW:extension:metadata")
    table = pq.read_table(folder / "train-0.parquet")
    names = {"ARROW:extension:name": "arrow.py_extension_type"}
    field = table.schema.field("label").with_metadata(names | {keys[2]: payload})
    schema = pa.schema([table.schema.field("image"), field])
    table = table.cast(schema).replace_schema_metadata({keys[1]: payload})
    pq.write_table(table, folder / "train-0.parquet")
    for in_memory in (True, False):
        try:
            loaded = eqmdm.data.load("mnist", data_dir=folder, in_memory=in_memory)
        except ValueError as error:
            assert "train-0.parquet" in str(error)
        else:
            assert len(loaded.train) + len(loaded.validation) == 30
    assert not marker.exists()


def test_script_beside_the_data_is_never_run(marker, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = _write_digits(tmp_path / "mnist")
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    # As `datasets` once ran them, and as Python does for what is on its path.
    names = ("mnist", "data", "__init__", "conftest", "sitecustomize", "parquet")
    for name in names:
        (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)
    for in_memory in (True, False):
        eqmdm.data.load("mnist", data_dir=folder, in_memory=in_memory)
        eqmdm.data.load("mnist", data_dir=folder.parent, in_memory=in_memory)
    assert not marker.exists()


@contents
def test_features_that_are_code_are_refused(content, payload, marker, tmp_path):
    path = tmp_path / "classifier.npz"
    path.write_bytes(_content(content, payload, marker))
    with pytest.raises(ValueError, match="`features` must be a file that `eqmdm train"):
        classifier.load(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", ["pickle", "archive", "python", "tag", "deep"])
def test_study_that_is_code_is_refused(content, payload, marker, tmp_path, capsys):

    path = tmp_path / "study.toml"
    text = {
        "python": f"__import__('os').mkdir({str(marker)!r})",
        "tag": f"train = !!python/object/apply:os.mkdir [{str(marker)!r}]",
        "deep": "a = " + "[" * 100_000,
    }
    if content in text:
        path.write_text(text[content])
    else:
        path.write_bytes(_content(content, payload, marker))
    error = _error(capsys, study.run, StudyOptions, path)
    assert "CONFIG must be a TOML file of a study" in error and "study.toml" in error
    assert not marker.exists()


@contents
def test_evaluations_that_are_code_are_refused(content, payload, marker, tmp_path):
    for name in (comparison.REPORT, comparison.TABLE):
        (tmp_path / name).write_bytes(_content(content, payload, marker))
    with pytest.raises(ValueError, match="`evaluations` must be directories"):
        comparison.read(tmp_path)
    assert not marker.exists()


# --- The code itself -----------------------------------------------------------------


def _faults(source, imports):
    """The calls and imports of a source file that could execute what it reads."""
    faults = {name for name in imports if name.split(".")[0] in LOADERS}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in RUNNERS | IMPORTERS:
            faults.add(node.func.id)
        if isinstance(node.func, ast.Attribute) and node.func.attr in IMPORTERS:
            faults.add(node.func.attr)
        for keyword in node.keywords:
            trusts = keyword.arg in ("allow_pickle", "trust_remote_code")
            value = getattr(keyword.value, "value", True)
            if trusts and value is not False:
                faults.add(keyword.arg)
    return faults


@pytest.mark.parametrize(
    "file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_file_neither_unpickles_nor_runs_what_it_reads(file):
    imports = imported_names(file, package=(file.parent.name,))
    faults = _faults(file.read_text(encoding="utf-8"), imports)
    # Equality, so that unused exemptions must be removed.
    assert faults == ALLOWED.get(file.name, set())


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=chosen)",
        "load_dataset(name, trust_remote_code=True)",
        "importlib.import_module(name)",
        "pkgutil.resolve_name(name)",
        "import_module(name)",
        "spec.loader.exec_module(module)",
    ],
)
def test_guard_finds_what_it_is_for(source):
    assert _faults(source, ()) and _faults("", ("pickle.loads",))
    assert not _faults("jax.jit(f).lower(x).compile()", ("json.loads",))
    assert not _faults("np.load(file, allow_pickle=False)", ())
