"""Every tracker: what it records is read back with the package's own reader."""

import io
import json
import struct
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image
from script_runs import POINTS, SCRIPTS

import eqmdm
from eqmdm.cli.parsing import parse
from eqmdm.cli.train import program
from eqmdm.cli.train.options import TrainOptions


PICTURE = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
CONFIG = {"steps": 6, "interval": [0.25, 1.0], "device": {"kind": "cpu"}}


def _tensorboard(directory):
    pytest.importorskip("tensorboard")
    return eqmdm.TensorBoardTracker(directory)


def _wandb(directory):
    pytest.importorskip("wandb")
    return eqmdm.WandBTracker(directory, name="run")


def _mlflow(directory):
    pytest.importorskip("mlflow")
    return eqmdm.MLflowTracker(directory, name="run")


def _trackio(directory):
    pytest.importorskip("trackio")
    return eqmdm.TrackioTracker(directory, name="run")


def _read_json_lines(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    scalars = [
        (name, record["step"], value)
        for record in map(json.loads, lines)
        for name, value in record.items()
        if name != "step"
    ]
    pictures = [
        ("/".join(path.stem.split("-")[:-1]), int(path.stem.split("-")[-1]))
        for path in directory.glob("*.png")
    ]
    (path, *_) = directory.glob("*.png")
    config = json.loads((directory / "config.json").read_text())
    return config, scalars, pictures, np.asarray(Image.open(path))


def _read_tensorboard(directory):
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(directory)).Reload()
    tags = events.Tags()
    scalars = [
        (tag, event.step, event.value)
        for tag in tags["scalars"]
        for event in events.Scalars(tag)
    ]
    images = [(tag, image) for tag in tags["images"] for image in events.Images(tag)]
    (text,) = events.Tensors("config")[-1].tensor_proto.string_val
    assert events.SummaryMetadata("config").plugin_data.plugin_name == "text"
    shown = np.asarray(Image.open(io.BytesIO(images[0][1].encoded_image_string)))
    pictures = [(tag, image.step) for tag, image in images]
    return json.loads(text), scalars, pictures, shown


def _read_wandb(directory):
    from wandb.proto import wandb_internal_pb2

    scalars, pictures, configs, ids = [], [], {}, set()
    for path in sorted(directory.rglob("*.wandb")):
        for content in _records_of_log(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            for item in [*record.run.config.update, *record.config.update]:
                configs[item.key] = json.loads(item.value_json)
            row = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            step = row.get("_step")
            for name, value in row.items():
                if isinstance(value, float):
                    scalars.append((name, step, value))
            if "samples/_type" in row or isinstance(row.get("samples"), dict):
                pictures.append(("samples", step))
    assert len(ids) == 1
    scalars = [entry for entry in scalars if not entry[0].startswith("_")]
    (path, *_) = directory.rglob("*.png")
    return configs, scalars, pictures, np.asarray(Image.open(path))


def _records_of_log(content):
    """The records of a log of LevelDB, whose format the files of W&B have."""
    assert content[:4] == b":W&B"
    place, parts = 7, []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def _read_mlflow(directory):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{directory / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("eqmdm")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    scalars = [
        (name, entry.step, entry.value)
        for name in run.data.metrics
        for entry in client.get_metric_history(run.info.run_id, name)
    ]
    (path,) = directory.rglob("*.png")
    pictures = [("samples", int(path.name.split("+")[2].removeprefix("step")))]
    params = run.data.params
    config = {"steps": int(params["steps"]), "interval": json.loads(params["interval"])}
    config["device"] = {"kind": params["device.kind"]}
    return config, scalars, pictures, np.asarray(Image.open(path))


def _read_trackio(directory):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    # The database is that of the process, which other tests write to as well.
    name = "run-" + json.loads((directory / "tracked.json").read_text())["run"]
    (run,) = [run for run in trackio.Api().runs("eqmdm") if run.name == name]
    scalars, pictures = [], []
    for row in SQLiteStorage.get_logs("eqmdm", run.name):
        for name, value in row.items():
            if isinstance(value, dict):
                pictures.append((name, row["step"]))
                # Stored with transparency.
                image = Image.open(MEDIA_DIR / value["file_path"])
                shown = np.asarray(image.convert("RGB"))
            elif name not in ("step", "timestamp"):
                scalars.append((name, row["step"], value))
    config = {k: v for k, v in run.config.items() if not k.startswith("_")}
    return config, scalars, pictures, shown


CASES = {
    "json": (eqmdm.JSONLinesTracker, _read_json_lines),
    "tensorboard": (_tensorboard, _read_tensorboard),
    "wandb": (_wandb, _read_wandb),
    "mlflow": (_mlflow, _read_mlflow),
    "trackio": (_trackio, _read_trackio),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    # These packages, and those that they import, warn of their own deprecations.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield CASES[request.param]


def _record(tracker, *, steps, pictures_at):
    with eqmdm.Tracking(tracker, config=CONFIG) as tracking:
        for step in steps:
            tracking.scalars(step, {"train/loss": 1.0 / step, "train/nats": 2.5})
            tracking.scalars(step, {"validation/loss": 0.5 + step})
        for step in pictures_at:
            tracking.pictures(step, {"samples": PICTURE})


def test_record_of_a_resumed_run_is_complete_and_has_no_step_twice(case, tmp_path):
    make, read = case
    with warnings.catch_warnings():
        # The warning of a tracker that fails.
        warnings.filterwarnings("error", ".* failed ")
        _record(make(tmp_path / "record"), steps=[2, 4], pictures_at=[])
        # Resumed from a checkpoint of step 2, so that step 4 is taken again.
        _record(make(tmp_path / "record"), steps=[4, 6], pictures_at=[6])
        # Complete, so that only the picture is drawn again.
        _record(make(tmp_path / "record"), steps=[], pictures_at=[6])
    config, scalars, pictures, shown = read(tmp_path / "record")
    expected = [
        entry
        for step in (2, 4, 6)
        for entry in (
            ("train/loss", step, 1.0 / step),
            ("train/nats", step, 2.5),
            ("validation/loss", step, 0.5 + step),
        )
    ]
    # TensorBoard stores float32.
    close = [(name, step, pytest.approx(v, rel=1e-7)) for name, step, v in expected]
    assert sorted(scalars) == sorted(close)
    assert pictures == [("samples", 6)]
    np.testing.assert_array_equal(shown, PICTURE)
    assert {name: config[name] for name in CONFIG} == CONFIG


def test_values_that_a_killed_process_lost_are_recorded_on_resuming(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    _record(_trackio(tmp_path / "record"), steps=[2, 4], pictures_at=[])
    # As if the process had noted step 6 and been killed before it was written.
    path = tmp_path / "record" / "tracked.json"
    record = json.loads(path.read_text())
    record["last"] = dict.fromkeys(record["last"], 6)
    path.write_text(json.dumps(record))
    _record(_trackio(tmp_path / "record"), steps=[4, 6, 8], pictures_at=[8])
    _, scalars, _, _ = _read_trackio(tmp_path / "record")
    steps = [step for name, step, _ in scalars if name == "train/loss"]
    assert sorted(steps) == [2, 4, 6, 8]


def test_values_that_wandb_may_not_have_written_are_not_noted(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    now = [100.0]
    tracker = _wandb(tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    noted = lambda: json.loads((tmp_path / "tracked.json").read_text())["last"]
    with tracker:
        tracker.scalars(2, {"train/loss": 1.0})
        assert noted() == {}
        now[0] += 60
        tracker.scalars(4, {"train/loss": 1.0})
        assert noted() == {"train/loss": 2}
    assert noted() == {"train/loss": 4}


@pytest.mark.parametrize("text", ["", "[]", '{"run": 1, "last": {}}', "[" * 100_000])
def test_damaged_record_is_named(text, tmp_path):
    (tmp_path / "tracked.json").write_text(text)
    with pytest.raises(ValueError, match="`directory` must hold the record"):
        eqmdm.JSONLinesTracker(tmp_path).scalars(1, {"train/loss": 1.0})


@pytest.mark.parametrize(
    "tracker, extra",
    [
        (eqmdm.TensorBoardTracker, "tensorboard"),
        (eqmdm.WandBTracker, "wandb"),
        (eqmdm.MLflowTracker, "mlflow"),
        (eqmdm.TrackioTracker, "trackio"),
    ],
)
def test_missing_package_is_named_with_its_extra(tracker, extra, tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == extra:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, extra, None)
    message = rf"comes with the extra `{extra}`: pip install 'eqmdm\[{extra}\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        tracker(tmp_path)


# --- The option of the program -------------------------------------------------------


def _error(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        program.run(parse(TrainOptions, ["--dataset=mixture", *arguments]))
    capsys.readouterr()
    (line,) = str(stopped.value.code).splitlines()
    return line


def test_wrong_tracker_is_one_line_before_any_work(
    tmp_path, capsys, monkeypatch, unchecked
):
    del unchecked
    place = f"--run-dir={tmp_path / 'run'}"
    error = _error(capsys, place, "--tracker=tensorbord")
    assert error.startswith("error: --tracker must be trackers, separated by commas; ")
    assert "Did you mean tensorboard?" in error
    error = _error(capsys, place, "--tracker=no_such_module:make")
    assert "error: --tracker must be a function or class that makes a tracker" in error
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = _error(capsys, place, "--tracker=wandb")
    assert error.startswith("error: --tracker cannot be wandb: this tracker needs ")
    assert error.endswith("the extra `wandb`: pip install 'eqmdm[wandb]'")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_run_sends_its_options_progress_samples_and_bound_to_a_tracker(tmp_path):
    (tmp_path / "own_tracker.py").write_text(
        "import eqmdm\n"
        "def make(run_dir):\n"
        "    return eqmdm.JSONLinesTracker(run_dir / 'own')\n"
    )
    arguments = [*POINTS, "--run-dir=run", "--batch-size=8", "--validation-examples=8"]
    arguments += "--log-every=2 --validate-every=4 --checkpoint-every=4".split()
    arguments += "--test-examples=8 --n-samples=4 --sample-steps=4".split()
    arguments += ["--tracker=own_tracker:make"]
    for more in (["--steps=4"], ["--steps=8", "--resume"]):
        script = [sys.executable, str(SCRIPTS / "train.py"), *arguments, *more]
        done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
    config, scalars, pictures, _ = _read_json_lines(tmp_path / "run" / "own")
    assert config["options"]["width"] == 8 and config["options"]["steps"] == 8
    assert config["versions"]["eqmdm"] == eqmdm.__version__
    assert sorted(pictures) == [("samples", 4), ("samples", 8)]
    steps = lambda name: [s for n, s, _ in scalars if n == name]
    assert steps("train/nats") == [2, 4, 6, 8]
    assert steps("validation/nats") == steps("test/nats_standard_error") == [4, 8]
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [r["nats"] for r in map(json.loads, records) if "nats" in r]
    assert [v for n, _, v in scalars if n == "train/nats"] == logged
    bound = json.loads((tmp_path / "run" / "test_bound.json").read_text())
    values = {n: v for n, s, v in scalars if s == 8}
    assert values["test/total"] == bound["terms"]["total"]["mean"]
