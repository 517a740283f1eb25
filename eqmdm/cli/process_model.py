"""Models with the noise and the start of a process that the options choose."""

import jax
import jax.random as jr

import eqmdm
from eqmdm._model.student_t import told_shift

from .train.options import ResolvedTrainOptions


# The tag of the key of the start's mean; the network of the score has the key itself.
_MEAN = 1


def with_process(
    options: ResolvedTrainOptions,
    model: eqmdm.AbstractModel,
    shape: tuple[int, ...],
    key: jax.Array,
) -> eqmdm.AbstractModel:
    """A model of normal noise, and of auxiliaries that start independent of the data,
    with the noise and the start of the options."""
    if options.noise is not None:
        assert options.nu is not None
        return eqmdm.StudentTModel(model, options.nu, hidden=options.hidden_precision)
    if options.start is None:
        return model
    n_aux = model.diffusion.n_vars - 1
    if n_aux == 0:
        raise ValueError(
            "`start` must be left out for a diffusion without auxiliary variables; got "
            f"{options.start} with {options.diffusion}. Use --diffusion cld."
        )
    # Small, since its input has no noise, and one evaluation serves an example.
    network = eqmdm.nn.MLP(shape, n_aux, width=64, depth=2, key=jr.fold_in(key, _MEAN))
    return eqmdm.ConditionedStartModel(model, eqmdm.nn.StartMean(network, n_aux))


def lowest_shift(options: ResolvedTrainOptions) -> float:
    """The least log-SNR that the network is told less that at the final time."""
    if options.noise is None:
        return 0.0
    assert options.nu is not None
    return told_shift(options.nu, hidden=options.hidden_precision)
