"""The dependence of a trained denoiser's bound on the path of its log-SNRs."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm

from .. import build
from ..bases import basis_of
from ..build import Purpose
from ..files import plain, write_text
from ..trained import TrainedRun
from .options import EvaluateOptions


FILE = "path_dependence.json"
# Each is evaluated along five legs for every mask and draw.
_EXAMPLES, _MASKS, _DRAWS = 256, 8, 4


def check(options: EvaluateOptions, trained: TrainedRun) -> None:
    """**Raises:** `ValueError` unless the denoiser is told vectors, and for a range of
    examples that the split does not have."""
    if not trained.model.takes_snr_vector:
        raise ValueError(
            "`diagnose` must be left out for this run, whose denoiser is told one SNR "
            "and has no path to depend on. Train with --snr vector."
        )
    n_split = len(getattr(trained.dataset, options.split))
    if options.first + (options.examples or 1) > n_split:
        raise ValueError(
            f"`examples` must be within the {options.split} split of {n_split}; got "
            f"{options.examples} from {options.first}."
        )


def diagnose(options: EvaluateOptions, trained: TrainedRun) -> None:
    """Print the dependence on the path, and write it as JSON."""
    n_draws = options.draws or _DRAWS
    key = build.purpose_key(options.seed, Purpose.BOUND)
    key_encode, key_paths = jr.split(key)
    stop = options.first + (options.examples or _EXAMPLES)
    rows = slice(options.first, stop)
    x = _encoded(trained, getattr(trained.dataset, options.split)[rows], key_encode)
    conditions = trained.dataset.conditions
    found = eqmdm.path_dependence(
        trained.model,
        x,
        key=key_paths,
        condition=(
            None if conditions is None else getattr(conditions, options.split)[rows]
        ),
        n_masks=_MASKS,
        n_draws=n_draws,
        batch_size=options.batch_size,
    )
    staggering = found.summary()["staggering"]
    orders = found.orders()
    report = {
        "run": trained.name,
        "step": trained.step,
        "split": options.split,
        "first": options.first,
        "examples": len(x),
        "masks": _MASKS,
        "draws": n_draws,
        "seed": options.seed,
        "unit": "nats/dim",
        "staggering": staggering._asdict(),
        "rms_order": found.rms_order,
        "orders": [order._asdict() for order in orders],
        "parameters": trained.parameters,
    }
    directory = Path(options.output_dir or options.run)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / FILE, json.dumps(plain(report), indent=1) + "\n")
    print(_as_text(report, staggering, orders))
    print(f"written to {directory / FILE}")


def _encoded(trained: TrainedRun, examples: Any, key: jax.Array) -> np.ndarray:
    """Examples as the model sees them."""
    levels = build.build_grey_levels(trained.options, trained.dataset)
    basis = basis_of(trained.model)

    @jax.jit
    @jax.vmap
    def encode(example: jax.Array, key: jax.Array) -> jax.Array:
        x = example
        if levels is not None:
            x, _ = levels.encode(example, key=key, dtype=trained.dtype, check=False)
        return x if basis is None else basis.forward(x)

    return np.asarray(encode(jnp.asarray(examples), jr.split(key, len(examples))))


def _as_text(
    report: dict[str, Any], staggering: eqmdm.Estimate, orders: list[eqmdm.Estimate]
) -> str:
    lines = [
        f"{report['run']}, step {report['step']}: dependence of the bound on the path "
        f"of the log-SNRs, in nats/dim; 0 for an exact denoiser",
        f"{report['examples']} examples of the {report['split']} split, "
        f"{report['masks']} random masks, {report['draws']} draws each",
        f"raising the log-SNR of the mask and the rest in turn, less together: "
        f"{staggering}",
        f"raising the mask first, less the rest first: {report['rms_order']:.2g} root "
        "mean square over the masks",
        *(f"  mask {number}: {order}" for number, order in enumerate(orders)),
    ]
    return "\n".join(lines)
