"""The training state: model, averaged parameters, optimiser state, step and key."""

from typing import Any, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, PyTree, UInt32

from .._core.checks import is_deleted
from .._core.types import IntScalar, PRNGKey
from .._model.base import AbstractModel, check_model, final_log_snr
from .profiles import PowerAverages


@final
class TrainState(eqx.Module):
    """Everything that training carries from step to step.

    A step donates the buffers of its state to the state that it returns. To keep an
    earlier model, copy its arrays before the step:
    `jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, state.model)`.

    - `model`: the model with its current parameters.
    - `ema`: the exponential moving average of the parameters, a tree with the model's
        structure and `None` for everything that is not trained.
    - `opt_state`: the state of the Optax optimiser, over the same tree.
    - `step`: the number of steps taken.
    - `key`: the data of the base key. The key of every draw is derived from it, from
        the purpose of the draw, and from the step or the example's number, so a resumed
        run needs nothing but the state.
    - `profiles`: running averages with power-function profiles, from which
        [`eqmdm.posthoc_ema`][] makes an average of any length; `None` without them.
    """

    model: AbstractModel
    ema: PyTree
    opt_state: PyTree
    step: IntScalar
    key: UInt32[Array, " words"]
    profiles: PowerAverages | None = None

    @classmethod
    def create(
        cls,
        model: AbstractModel,
        optimiser: optax.GradientTransformation,
        *,
        key: PRNGKey,
        ema_profiles: bool = False,
    ) -> "TrainState":
        """The state before the first step.

        It copies its arrays, because steps donate the buffers of their state.

        **Arguments:**

        - `model`: the model to train. Its inexact JAX arrays are the parameters.
        - `optimiser`: any Optax optimiser. It is initialised on
            `eqx.filter(model, eqx.is_inexact_array)`.
        - `key`: the key for all draws in training.
        - `ema_profiles`: whether to keep `profiles`, two more copies of the parameters.

        **Raises:**

        `TypeError` unless `model` is a model; `ValueError` for a `key` that is not of
        JAX's default generator, or a diffusion that ends below the log-SNR range of its
        denoiser.
        """
        check_model(model)
        _check_key(key)
        model, ema, opt_state, step, key_data, final = _initial(model, optimiser, key)
        model.check_final_time(step, final)
        profiles = PowerAverages.create(ema) if ema_profiles else None
        return cls(model, ema, opt_state, step, key_data, profiles)

    @property
    def ema_model(self) -> AbstractModel:
        """The model with averaged parameters."""
        return eqx.combine(self.ema, self.model)


# One program: called eagerly, each copy and each zero would be compiled separately.
@eqx.filter_jit
def _initial(model, optimiser, key):
    copied = jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, model)
    trainable = eqx.filter(model, eqx.is_inexact_array)
    # Optax mixes counts and floats, which strict promotion would reject.
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimiser.init(trainable)
    final = None if model.log_snr_range is None else final_log_snr(model.diffusion)
    return (
        copied,
        jax.tree.map(jnp.copy, trainable),
        opt_state,
        jnp.zeros((), jnp.int32),
        jr.key_data(key),
        final,
    )


def _check_key(key: PRNGKey) -> None:
    config: Any = jax.config
    given, default = jr.key_impl(key), config.jax_default_prng_impl
    if given != default:
        raise ValueError(
            "`key` must be a key of JAX's default generator, which makes the draws of "
            f"a step; got one of {given}, not {default}. Create it with "
            "`jax.random.key`; set `jax_default_prng_impl` for another generator."
        )


def check_state(state: Any) -> None:
    """**Raises:** `TypeError` unless `state` is a training state; `ValueError` if its
    buffers have been donated."""
    if not isinstance(state, TrainState):
        # If it is not even a model, the error says how to build one first.
        check_model(state)
        raise TypeError(
            f"`state` must be a `TrainState`; got {type(state).__name__}. Create one "
            "with `eqmdm.TrainState.create(model, optimiser, key=key)`."
        )
    if is_deleted(state):
        raise ValueError(
            "`state` must be the newest training state; this one was passed to "
            "`train_step` before, which donated its buffers to the state that it "
            "returned. Continue with that one: `state, metrics = train_step(state, "
            "...)`. To keep an earlier model, copy its arrays before the step."
        )


def update(
    state: TrainState,
    gradient: PyTree,
    optimiser: optax.GradientTransformation,
    ema_decay: Array,
) -> TrainState:
    """The state after one update of the parameters and their averages."""
    trainable, static = eqx.partition(state.model, eqx.is_inexact_array)
    # Optax mixes counts and floats, which strict promotion would reject.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimiser.update(gradient, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    step = state.step.astype(jnp.float32)
    # A low decay at first, so that the average soon forgets the initial parameters.
    decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
    ema = jax.tree.map(
        lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old),
        state.ema,
        trainable,
    )
    profiles, number = state.profiles, state.step + 1
    if profiles is not None:
        profiles = profiles.updated(trainable, number)
    model = cast(AbstractModel, eqx.combine(trainable, static))
    return TrainState(model, ema, opt_state, number, state.key, profiles)
