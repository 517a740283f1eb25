"""Model structures as JSON; the file's name keeps clear of the classes' own checks."""

import json
import math
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from eqmdm import nn
from eqmdm._training.structure import describe, rebuild
from eqmdm._training.train import parameters
from helpers import tree_allclose


def _learned(**switches):
    return eqmdm.LearnedDiffusion(2, key=jr.key(1), **switches)


MODELS = {
    "unet": lambda: nn.UNet(
        (8, 8, 1), 2, width=8, multipliers=(1, 2), n_blocks=1, key=jr.key(0)
    ),
    "mlp": lambda: nn.MLP((2,), 3, width=8, depth=1, key=jr.key(0)),
    "vpsde": lambda: eqmdm.VPSDE(),
    "subvpsde": lambda: eqmdm.SubVPSDE(),
    "vesde": lambda: eqmdm.VESDE(),
    "cld": lambda: eqmdm.CLD(interval=eqmdm.TimeInterval(0.01, 2.0)),
    "alda": lambda: eqmdm.ALDA(),
    "malda": lambda: eqmdm.MALDA(schedule=eqmdm.ConstantSchedule(4.0)),
    "psld": lambda: eqmdm.PSLD(),
    "critical3": lambda: eqmdm.CriticalThirdOrder(schedule=eqmdm.CosineSchedule(8.0)),
    "linear": lambda: eqmdm.LinearDiffusion(
        [[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]
    ),
    "learned": _learned,
    "learned_all": lambda: _learned(
        learn_stationary=True, learn_start=True, learn_schedule=True
    ),
}


def _denoiser():
    network = nn.MLP((2,), 1, width=8, depth=1, key=jr.key(0))
    return eqmdm.PreconditionedDenoiser(
        network, data_std=0.7, log_snr_range=(-20.0, 14.0)
    )


MODELS["denoiser"] = _denoiser
MODELS["denoiser_score"] = lambda: eqmdm.DenoiserScore(_denoiser(), eqmdm.CLD())
MODELS["free_score"] = lambda: eqmdm.FreeScore(
    nn.MLP((2,), 2, width=8, depth=1, key=jr.key(0)), _learned()
)


@pytest.mark.parametrize("name", MODELS)
def test_model_survives_json_exactly(name):
    model = MODELS[name]()
    described = json.loads(json.dumps(describe(model), allow_nan=False))
    rebuilt = rebuild(described, parameters(model))
    # The structures compare every static field; the leaves must be equal to the bit.
    assert jax.tree.structure(rebuilt) == jax.tree.structure(model)
    assert tree_allclose(rebuilt, model, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_structure_without_arrays_has_their_shapes_and_dtypes(name):
    model = MODELS[name]()
    skeleton = rebuild(json.loads(json.dumps(describe(model))))
    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if eqx.is_array(x) else x,
        model,
    )
    assert jax.tree.structure(skeleton) == jax.tree.structure(expected)
    assert jax.tree.leaves(skeleton) == jax.tree.leaves(expected)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        1e-300,
        math.inf,
        -math.inf,
        "text",
        (1, [2.0, "a"]),
        {"k": ()},
    ],
    ids=repr,
)
def test_plain_values_survive_json_with_their_types(value):
    rebuilt = rebuild(json.loads(json.dumps(describe(value), allow_nan=False)))
    assert rebuilt == value and type(rebuilt) is type(value)


def test_nan_survives_json():
    assert math.isnan(rebuild(json.loads(json.dumps(describe(math.nan)))))


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)], ids=str)
def test_numpy_constants_survive_json_exactly(dtype, shape):
    values = np.random.default_rng(0).normal(size=shape) * 3
    constant = np.asarray(values).astype(dtype)
    rebuilt = rebuild(json.loads(json.dumps(describe(constant))))
    assert isinstance(rebuilt, np.ndarray) and rebuilt.dtype == constant.dtype
    np.testing.assert_array_equal(rebuilt, constant)


def test_numpy_scalar_and_infinities_survive_json():
    scalar = rebuild(json.loads(json.dumps(describe(np.float32(0.1)))))
    assert type(scalar) is np.float32 and scalar == np.float32(0.1)
    constant = np.array([np.inf, -np.inf, 1.0])
    rebuilt = rebuild(json.loads(json.dumps(describe(constant), allow_nan=False)))
    np.testing.assert_array_equal(rebuilt, constant)


@typing.final
class _Foreign(eqx.Module):
    weight: jax.Array


def test_class_from_elsewhere_is_not_described():
    with pytest.raises(TypeError, match=r"`model\[1\]` must be a final module.*like="):
        describe((eqmdm.VPSDE(), _Foreign(jnp.ones(2))))


def test_function_is_not_described():
    with pytest.raises(TypeError, match=r"`model\[0\]` must be data"):
        describe((len,))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "eqmdm.os.system",
        "builtins.eval",
        "subprocess.Popen",
        "equinox.nn.Lambda",
        "eqmdm.AbstractDiffusion",
        "eqmdm.data.load",
        "eqmdm.__class__",
        "test_structure_json._Foreign",
    ],
)
def test_class_that_is_not_a_final_module_is_refused(name):
    hostile = {"kind": "module", "class": name, "fields": {"command": "true"}}
    with pytest.raises(ValueError, match="not a final module of eqmdm.*like="):
        rebuild(hostile, {})


@pytest.mark.parametrize("change", ["missing", "additional"])
def test_wrong_fields_are_refused(change):
    described = describe(eqmdm.ConstantSchedule(2.0))
    if change == "missing":
        del described["fields"]["value"]
    else:
        described["fields"]["__class__"] = "anything"
    with pytest.raises(ValueError, match="must give eqmdm.ConstantSchedule the fields"):
        rebuild(described, {})


def test_field_that_came_later_than_the_description_has_its_default():
    model = MODELS["unet"]()
    described = describe(model)
    del described["fields"]["remat"]
    assert rebuild(described, parameters(model)).remat is False


def test_values_that_the_class_refuses_are_refused():
    described = describe(eqmdm.ConstantSchedule(2.0))
    described["fields"]["value"] = -1.0
    with pytest.raises(ValueError, match="must be positive"):
        rebuild(described, {})


@pytest.mark.parametrize(
    "hostile",
    [
        [1, 2],
        {"kind": "pickle", "data": "gASV"},
        {"kind": "tuple", "items": "abc"},
        {"kind": "module", "class": ["eqmdm.VPSDE"], "fields": {}},
        {"kind": "float", "value": "1e5"},
        {},
    ],
    ids=str,
)
def test_malformed_description_is_refused(hostile):
    with pytest.raises(ValueError, match="`description"):
        rebuild(hostile, {})


@pytest.mark.parametrize("dtype", ["object", "str", "no_such_dtype", None, 3])
def test_constant_of_no_numeric_dtype_is_refused(dtype):
    hostile = {"kind": "constant", "dtype": dtype, "shape": [1], "values": [1]}
    with pytest.raises(ValueError, match="dtype"):
        rebuild(hostile)


def test_array_of_another_shape_or_dtype_is_refused():
    described = describe(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"must be float64 of shape \(2, 3\)"):
        rebuild(described, {"": np.ones((3, 2))})
    with pytest.raises(ValueError, match="must be float64"):
        rebuild(described, {"": np.ones((2, 3), np.float32)})
    with pytest.raises(ValueError, match="has no ''"):
        rebuild(described, {})
