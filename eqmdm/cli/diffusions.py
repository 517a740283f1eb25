"""The diffusions of `eqmdm train`, from its options."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

import eqmdm

from .._core.own import is_own
from . import own_code
from .train.options import ResolvedTrainOptions


_DIFFUSIONS = {
    "vpsde": eqmdm.VPSDE,
    "subvpsde": eqmdm.SubVPSDE,
    "vesde": eqmdm.VESDE,
    "cld": eqmdm.CLD,
    "alda": eqmdm.ALDA,
    "malda": eqmdm.MALDA,
    "psld": eqmdm.PSLD,
    "critical3": eqmdm.CriticalThirdOrder,
    "learned": eqmdm.LearnedDiffusion,
}
_SCHEDULES = {
    "constant": (eqmdm.ConstantSchedule, 1),
    "linear": (eqmdm.LinearSchedule, 2),
    "cosine": (eqmdm.CosineSchedule, 1),
}


def build_diffusion(options: ResolvedTrainOptions, key: jax.Array) -> Any:
    settings: dict[str, Any] = {}
    if options.t_range is not None:
        settings["interval"] = eqmdm.TimeInterval(*options.t_range)
    elif options.log_snr_range is not None:
        settings["interval"] = eqmdm.LogSNRInterval(*options.log_snr_range)
    if options.schedule != "default":
        cls, n_values = _SCHEDULES[options.schedule]
        if len(options.schedule_values) not in (0, n_values):
            raise ValueError(
                f"`schedule_values` must be {n_values} number(s) for the "
                f"{options.schedule} schedule, or none for its defaults; got "
                f"{options.schedule_values}."
            )
        if options.diffusion == "vesde":
            raise ValueError("`schedule` must be left out for vesde, which has none.")
        settings["schedule"] = cls(*options.schedule_values)
    elif options.schedule_values:
        raise ValueError(
            "`schedule_values` must come with the `schedule` that they belong to."
        )
    if is_own(options.diffusion):
        return own_code.make_diffusion(options.diffusion, settings)
    if options.diffusion == "learned":
        assert options.n_vars is not None
        return eqmdm.LearnedDiffusion(options.n_vars, key=key, **settings)
    return _DIFFUSIONS[options.diffusion](**settings)


def ends_are_learned(diffusion: eqmdm.AbstractLinearDiffusion) -> bool:
    """Whether training can change the log-SNRs at t0 and t1.

    A learned schedule keeps them if these times are its own.
    """
    ends = [float(diffusion.t0), float(diffusion.t1)]

    def keeps_ends(node: Any) -> bool:
        if not isinstance(node, eqmdm.LearnedSchedule):
            return False
        return np.allclose([node.knots[0], node.knots[-1]], ends, rtol=1e-6)

    leaves = jax.tree.leaves(diffusion, is_leaf=keeps_ends)
    return any(eqx.is_inexact_array(leaf) for leaf in leaves)
