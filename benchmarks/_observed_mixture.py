"""Posteriors of a mixture in the plane, by each method: a part of observations.py."""

import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import mixtures
from _observation_baselines import DPS, PIGDM

import eqmdm
from eqmdm import observe


# The ends of the published comparison: noise from 80 down to 0.005.
ENDS = eqmdm.LogSNRInterval(-2 * math.log(80), -2 * math.log(0.005))


def mixture(settings: Any) -> list[dict[str, Any]]:
    plane, turn = mixtures.PLANE, mixtures.TURN
    posterior, log_evidence = plane.given(
        mixtures.OPERATOR, mixtures.VARIANCE, mixtures.VALUE
    )
    n, key = settings.mixture_samples, jr.key(settings.seed)
    diffusion = eqmdm.VPSDE(interval=ENDS)
    std, value = mixtures.VARIANCE**0.5, [mixtures.VALUE]
    dense = observe.dense(mixtures.OPERATOR, (2,))
    observation = eqmdm.LinearObservation(dense, value, std)
    turned = observe.dense(mixtures.OPERATOR, (2,), basis=mixtures.Turned())
    exact = plane.rotated(turn).model(diffusion)
    exact = exact.given(eqmdm.LinearObservation(turned, value, std), eqmdm.Exact())
    scalar = plane.model(diffusion, vector=False)
    given = {
        "exact": exact,
        "moment matching": scalar.given(observation, eqmdm.MomentMatching()),
        "PiGDM": scalar.given(observation, PIGDM),
        "DPS": scalar.given(observation, DPS),
    }
    deterministic, ancestral = eqmdm.DPMSolver(), eqmdm.AncestralSampler()
    cases = [
        ("exact", deterministic, True),
        ("exact", deterministic, False),
        ("exact", ancestral, True),
        ("moment matching", deterministic, True),
        ("moment matching", ancestral, True),
        ("PiGDM", deterministic, True),
        ("DPS", deterministic, True),
    ]
    rows = [
        _mixture_row("truth", "", posterior.draw(n, settings.seed + 1), posterior, None)
        | {"log_evidence": log_evidence}
    ]
    for name, sampler, about_estimate in cases:
        x = _mixture_samples(settings, given[name], sampler, about_estimate, key)
        x = x @ turn if name == "exact" else x
        how = type(sampler).__name__
        how += "" if about_estimate else ", started about 0"
        rows.append(_mixture_row(name, how, x, posterior, None))
        print(rows[-1], flush=True)
    for n_particles in (500, n):
        smc = eqmdm.TwistedSMC(n_particles, settings.mixture_steps)
        result = smc(scalar, observation, (2,), key=key)
        weights = np.exp(np.asarray(result.log_weights))
        x = np.asarray(result.particles)
        how = f"{n_particles:,} particles"
        row = _mixture_row("twisted SMC", how, x, posterior, weights)
        row |= {
            "log_evidence": float(result.log_evidence),
            "log_evidence_error": float(result.standard_error),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def _mixture_samples(
    settings: Any,
    model: eqmdm.AbstractModel,
    sampler: Any,
    about_estimate: bool,
    key: Any,
) -> np.ndarray:
    n, n_steps = settings.mixture_samples, settings.mixture_steps
    if about_estimate:
        options = {"sampler": sampler, "n_steps": n_steps, "n_samples": n}
        return np.asarray(eqmdm.sample(model, (2,), key=key, **options))
    times = sampler.times(model.diffusion, n_steps)

    @jax.jit
    @jax.vmap
    def one(key):
        y = model.diffusion.prior.sample((2,), key=key)
        return sampler(model, y, times, key=key)

    return np.asarray(one(jr.split(key, n)))


def _mixture_row(
    method: str,
    how: str,
    x: np.ndarray,
    posterior: Any,
    weights: np.ndarray | None,
) -> dict[str, Any]:
    n = len(x)
    weights = np.full(n, 1 / n) if weights is None else weights
    shares = weights @ mixtures.PLANE.responsibilities(x)
    effective = 1 / np.sum(weights**2)
    errors = np.sqrt(shares * (1 - shares) / effective)
    generator = np.random.default_rng(0)
    drawn = x[generator.choice(n, n, p=weights)]
    truth = posterior.draw(n, 7)
    distance = eqmdm.sliced_wasserstein(drawn, truth, key=jr.key(0))
    mean = weights @ x
    row: dict[str, Any] = {"method": method, "how": how, "effective_samples": effective}
    for i in range(3):
        row |= {f"weight_{i + 1}": shares[i], f"weight_{i + 1}_error": errors[i]}
    row |= {"mean_1": mean[0], "mean_2": mean[1]}
    row["trace_of_covariance"] = np.trace(np.cov(x.T, aweights=weights))
    row["sliced_wasserstein"] = float(distance.value)
    return row
