"""Shared models: equal to the bit after a round trip, and nothing that is executed."""

import json
import pickle
import shutil

import equinox as eqx
import huggingface_hub
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import safetensors.numpy
from script_runs import POINTS, copy_run, single_precision

import eqmdm
from eqmdm import nn
from eqmdm._core.array_file import read_arrays, write_arrays
from eqmdm._training.checkpoint import named_arrays
from helpers import tree_allclose


BOUND = {
    "step": 7,
    "examples": 64,
    "draws": 8,
    "terms": {
        "total": {"mean": -3.25, "standard_error": 0.5, "unit": "nats"},
        "nats": {"mean": 3.25, "standard_error": 0.5, "unit": "nats"},
    },
}


def _model(width=4, dtype=jnp.float32):
    network = nn.MLP((2,), 2, width=width, depth=1, key=jr.key(0))
    network = jax.tree.map(
        lambda v: v.astype(dtype) if eqx.is_inexact_array(v) else v, network
    )
    return eqmdm.NoiseModel(network, eqmdm.LearnedDiffusion(2, key=jr.key(1)))


@pytest.fixture
def saved(tmp_path):
    return eqmdm.save_pretrained(_model(), tmp_path / "shared")


def _equal(one, other):
    return tree_allclose(named_arrays(one), named_arrays(other), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_model_is_loaded_to_the_last_bit(dtype, tmp_path):
    model = _model(dtype=dtype)
    eqmdm.save_pretrained(model, tmp_path)
    loaded = eqmdm.load_pretrained(tmp_path, like=_model(dtype=dtype))
    assert _equal(loaded, model)


def test_run_of_a_program_is_loaded_without_its_structure(tmp_path):
    with single_precision():
        run_dir = copy_run(tmp_path / "run", *POINTS)
        (run_dir / "test_bound.json").write_text(json.dumps(BOUND))
        model = eqmdm.load_run(run_dir)
        shared = eqmdm.save_pretrained(
            model, tmp_path / "shared", run_dir=run_dir, name="a model", licence="mit"
        )
        # Whoever loads it has no run.
        shutil.rmtree(run_dir)
        assert _equal(eqmdm.load_pretrained(shared), model)
    files = {path.name for path in shared.iterdir()}
    assert files == {"model.safetensors", "config.json", "README.md"}
    card = huggingface_hub.ModelCard.load(shared / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "eqmdm"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("nats", 3.25)
    assert result.metric_args["standard_error"] == 0.5
    assert (result.dataset_type, result.dataset_split) == ("mixture", "test")
    assert "| total | -3.2500 | 0.5000 | nats |" in card.text
    assert 'eqmdm.load_pretrained("a model")' in card.text
    # Neither paths nor the command of whoever trained it.
    config = json.loads((shared / "config.json").read_text())
    for text in (card.content, json.dumps(config)):
        assert str(tmp_path) not in text
    assert "command" not in config and "machine" not in config["device"]


def test_model_of_another_run_is_not_saved(tmp_path):
    with single_precision():
        run_dir = copy_run(tmp_path / "run", *POINTS)
        with pytest.raises(ValueError, match="must have the arrays of the model"):
            eqmdm.save_pretrained(_model(), tmp_path / "shared", run_dir=run_dir)
    assert not (tmp_path / "shared").exists()


def test_model_made_in_python_needs_its_structure(saved):
    with pytest.raises(ValueError, match="`like` must be given for .*, which no progr"):
        eqmdm.load_pretrained(saved)
    assert _equal(eqmdm.load_pretrained(saved, like=lambda options: _model()), _model())
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    assert "`like` is a model of the same structure" in card.text
    assert card.data.eval_results is None
    with pytest.raises(ValueError, match=r"is float32\[4, 16\] in the checkpoint and"):
        eqmdm.load_pretrained(saved, like=_model(width=6))
    with pytest.raises(ValueError, match="float32.* in the checkpoint and float64"):
        eqmdm.load_pretrained(saved, like=_model(dtype=jnp.float64))


# --- Damaged and foreign files -------------------------------------------------------


def test_file_that_is_cut_off_is_rejected_at_every_length(saved):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    for length in [*range(0, 200, 7), len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="must be a complete safetensors file"):
            eqmdm.load_pretrained(saved, like=_model())
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        eqmdm.load_pretrained(saved, like=_model())


def test_flipped_bit_is_found(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="its values differ from those that were saved"
    ):
        eqmdm.load_pretrained(saved, like=_model())


def _entry(**changes):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {"a": entry | changes, "b": {**entry, "data_offsets": [8, 16]}}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a": {}, "a": {}}',
        _entry(dtype="F4"),
        _entry(dtype=None),
        _entry(dtype=["F32"]),
        _entry(shape=[3]),
        _entry(shape=[-2]),
        _entry(shape=[True, 2]),
        _entry(shape=[2.0]),
        _entry(shape=[2**62, 4]),
        _entry(shape=None),
        _entry(data_offsets=[0, 4]),
        _entry(data_offsets=[4, 8]),
        _entry(data_offsets=[8, 16]),
        _entry(data_offsets=[-8, 0]),
        _entry(data_offsets=[0, 2**70]),
        _entry(data_offsets=[8, 0]),
        _entry(data_offsets=["0", "8"]),
        _entry(data_offsets=None),
        {"a": None},
    ],
    ids=range(24),
)
def test_header_of_another_form_is_rejected(header, tmp_path):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        read_arrays(path)
    path.write_bytes((2**63).to_bytes(8, "little") + bytes(100))
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        read_arrays(path)


class _Payload:
    def __init__(self, marker):
        self._marker = str(marker)

    def __reduce__(self):
        import os

        return os.mkdir, (self._marker,)


def test_pickle_is_neither_read_nor_run(saved, tmp_path):
    marker = tmp_path / "run by the file"
    content = pickle.dumps(_Payload(marker))
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        eqmdm.load_pretrained(saved, like=_model())
    (saved / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pkl", "model.eqx"):
        (saved / name).write_bytes(content)
    with pytest.raises(ValueError, match="such as pickles, are not read"):
        eqmdm.load_pretrained(saved, like=_model())
    assert not marker.exists()


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "there is no such file"),
        ("{", "it is damaged, or of another program"),
        ("[" * 100_000, "it is damaged, or of another program"),
        ('{"architectures": ["UNet2DModel"]}', "it is damaged, or of another program"),
        (
            '{"format": "eqmdm", "format_version": 2, "options": {}}',
            "format 2 is newer than this",
        ),
    ],
)
def test_foreign_configuration_is_one_line(text, message, saved):
    (saved / "config.json").unlink()
    if text is not None:
        (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        eqmdm.load_pretrained(saved, like=_model())
    assert "\n" not in str(raised.value)


def test_configuration_that_names_other_code_runs_nothing(saved, tmp_path):
    path, marker = saved / "config.json", tmp_path / "run by the file"
    config = json.loads(path.read_text())
    config |= {"builder": "os:mkdir", "options": {"path": str(marker)}}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`builder` must be one of this package"):
        eqmdm.load_pretrained(saved)
    assert not marker.exists()


def test_array_that_the_format_lacks_is_named(tmp_path):
    model = eqmdm.NoiseModel(lambda t, y: y, eqmdm.VPSDE())
    model = eqx.tree_at(lambda m: m.network, model, {"w": jnp.ones(2, complex)})
    with pytest.raises(TypeError, match="must have arrays of real numbers; network"):
        eqmdm.save_pretrained(model, tmp_path / "shared")


# --- The Hub -------------------------------------------------------------------------


def test_name_on_the_hub_is_fetched_without_other_files(saved, monkeypatch):
    calls = []

    def download(repository, **settings):
        calls.append((repository, settings))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = eqmdm.load_pretrained("org/name", like=_model(), revision="v1")
    assert _equal(loaded, _model())
    ((repository, settings),) = calls
    assert repository == "org/name" and settings["revision"] == "v1"
    assert settings["repo_type"] == "model"
    assert settings["allow_patterns"] == ["model.safetensors", "config.json"]


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path):
    def download(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConnectionError, match=r"org/name cannot be .* \(no network\)"):
        eqmdm.load_pretrained("org/name")
    with pytest.raises(ValueError, match="`name` must be a directory, or the name of"):
        eqmdm.load_pretrained(tmp_path / "no" / "such" / "directory")


# --- The format ----------------------------------------------------------------------


def _arrays():
    rng = np.random.default_rng(0)
    dtypes = ["bool", "uint8", "int16", "uint32", "int64", "float16", "float32"]
    arrays = {d: (5 * rng.normal(size=(3, 2))).astype(d) for d in [*dtypes, "float64"]}
    arrays["bfloat16"] = rng.normal(size=7).astype(jnp.bfloat16)
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    return arrays | {"odd": odd, "none": np.zeros((0, 3)), "one": np.float32(2.5)[()]}


def test_files_of_other_programs_are_read(tmp_path):
    arrays = {k: np.asarray(v) for k, v in _arrays().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "theirs")
    _check_same_bits(read_arrays(tmp_path / "theirs"), arrays)


def test_arrays_of_every_kind_are_read_as_they_were_written(tmp_path):
    arrays = {k: np.asarray(v) for k, v in _arrays().items()}
    write_arrays(tmp_path / "file", arrays)
    _check_same_bits(read_arrays(tmp_path / "file"), arrays)


def _check_same_bits(found, arrays):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes(), name
