"""The evaluator: rows of a table of likelihoods, batch by batch."""

import dataclasses
import math
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm import nn

from .. import build
from ..bases import basis_of
from ..build import Purpose
from ..clocks import CLOCKS
from ..train.options import check_focus
from ..trained import TrainedRun
from .settings import EvaluateSettings, find_solver


_BOUND_TERMS = ("reconstruction", "prior", "diffusion", "auxiliary")
_ENCODING_TERMS = ("dequantisation", "data_transform")


class Evaluator:
    """Computes the rows of given examples, whose keys depend on their numbers alone."""

    def __init__(self, trained: TrainedRun, options: EvaluateSettings):
        """**Raises:** `ValueError` for an ODE route with discrete levels and no
        dequantisation."""
        trained = trained.over_devices(options.batch_size)
        self._trained, self._options = trained, options
        self._basis = basis_of(trained.model)
        self._examples = getattr(trained.dataset, options.split)
        self._conditions = _find_conditions(trained, options)
        if options.route == "elbo":
            given = {"decoder": options.decoder, "focus": options.focus}
            given = {name: value for name, value in given.items() if value is not None}
            with_given = dataclasses.replace(trained.options, **given)
            check_focus(with_given)
            self._objective = build.build_objective(
                with_given, trained.dataset, self._basis
            )
        else:
            self._grey_levels = _make_grey_levels(trained, options)
            if self._grey_levels is not None:
                self._grey_levels.check(self._examples)
            self._method = _make_method(options)

    def __call__(self, start: int, stop: int) -> list[dict[str, Any]]:
        """The rows of the examples from `start` to `stop`, at most a batch."""
        find = self._bound if self._options.route == "elbo" else self._log_likelihood
        columns = {"example": np.arange(start, stop)} | find(start, stop)
        if self._trained.dataset.n_levels is None:
            columns["nats"] = -columns["total"]
        else:
            n_dims = math.prod(self._trained.dataset.shape)
            columns["bits_per_dim"] = -columns["total"] / (n_dims * math.log(2))
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _bound(self, start: int, stop: int) -> dict[str, np.ndarray]:
        n_draws = self._options.draws
        found = eqmdm.evaluate(
            self._trained.model,
            self._examples[start:stop],
            self._objective,
            # The key of `eqmdm train`, so that equal draws give the same test bound.
            key=build.purpose_key(self._options.seed, Purpose.BOUND),
            condition=self._take_conditions(slice(start, stop)),
            n_draws=n_draws,
            batch_size=self._options.batch_size,
            first=start,
        )
        names = (*_BOUND_TERMS, *_ENCODING_TERMS, "total")
        return {name: found.terms[name] for name in names} | {
            "standard_error": found.standard_error,
            # Each draw evaluates the network at t0 and at a random time.
            "evaluations": np.full(stop - start, 2 * n_draws),
            "converged": np.isfinite(found.terms["total"]),
        }

    def _take_conditions(self, rows: Any) -> Any:
        conditions = self._conditions
        return None if conditions is None else jnp.asarray(conditions[rows])

    def _log_likelihood(self, start: int, stop: int) -> dict[str, np.ndarray]:
        # The last batch is padded with its last example, to compile only once.
        batch = np.arange(start, start + self._options.batch_size)
        numbers = np.minimum(batch, stop - 1)
        examples, given, numbers = eqmdm.divide_batch(
            (
                jnp.asarray(self._examples[numbers]),
                self._take_conditions(numbers),
                jnp.asarray(numbers, jnp.int32),
            ),
            self._trained.mesh,
        )
        draws = [
            _solve_batch(
                self._trained.model,
                self._grey_levels,
                self._basis,
                self._method,
                examples,
                given,
                numbers,
                jnp.asarray(draw, jnp.int32),
                build.purpose_key(self._options.seed, Purpose.LIKELIHOOD),
                self._trained.dtype,
            )
            for draw in range(self._options.draws)
        ]
        draws = jax.device_get(draws)
        take = lambda name: np.stack([draw[name] for draw in draws])[:, : stop - start]
        converged = take("converged").all(axis=0)
        # An example that failed in any draw is NaN.
        kept = np.where(converged, 0.0, np.nan)
        names = ("log_likelihood", *_ENCODING_TERMS)
        terms = {name: take(name).astype(np.float64) + kept for name in names}
        terms["data_transform"] += build.log_jacobian(self._trained.dataset)
        total = sum(terms.values(), np.zeros(()))
        error = take("standard_error")[0].astype(np.float64)
        if len(draws) > 1:
            # Each draw has its own probes and auxiliary variables.
            error = total.std(axis=0, ddof=1) / math.sqrt(len(draws))
        return {name: term.mean(axis=0) for name, term in terms.items()} | {
            "total": total.mean(axis=0),
            "standard_error": error,
            "evaluations": take("evaluations").sum(axis=0),
            "converged": converged,
        }


def _find_conditions(
    trained: TrainedRun, options: EvaluateSettings
) -> np.ndarray | None:
    """The conditions of the examples of the split, for a conditional model."""
    if trained.condition is None:
        return None
    found = np.asarray(getattr(trained.dataset.conditions, options.split))
    if options.of_class is not None:
        return np.full_like(found, options.of_class)
    return np.asarray(nn.missing_like(found)) if options.unconditional else found


def _make_grey_levels(trained: TrainedRun, options: EvaluateSettings) -> Any:
    trained_with = trained.options
    if options.dequantisation is not None:
        trained_with = dataclasses.replace(
            trained_with, dequantisation=options.dequantisation
        )
    grey_levels = build.build_grey_levels(trained_with, trained.dataset)
    if grey_levels is not None and not grey_levels.dequantiser.gives_density:
        raise ValueError(
            f"`dequantisation` must be given on the route {options.route} for this "
            "run: it was trained with discrete levels, whose mass only its decoder "
            "gives, while an ODE gives a density. Use --dequantisation uniform, or "
            "--route elbo."
        )
    return grey_levels


def _make_method(options: EvaluateSettings) -> dict[str, Any]:
    """The arguments of `eqmdm.log_likelihood` that choose the ODE and its solver."""
    clock = CLOCKS[options.clock]
    if options.route == "augmented":
        route = eqmdm.AugmentedRoute(
            options.aux_draws, options.importance_weighted, clock
        )
    else:
        assert clock is not None
        route = eqmdm.CollapsedRoute(clock)
    divergence = eqmdm.ExactDivergence()
    if options.divergence == "hutchinson":
        divergence = eqmdm.HutchinsonDivergence(options.probes)
    return {
        "route": route,
        "divergence": divergence,
        "solver": find_solver(options.solver),
        "stepsize_controller": dfx.PIDController(
            rtol=options.tolerance, atol=options.tolerance
        ),
        "max_steps": options.max_steps,
    }


@eqx.filter_jit
def _solve_batch(
    model, grey_levels, basis, method, examples, conditions, numbers, draw, key, dtype
) -> Any:
    def one(example, condition, number):
        key_draw = jr.fold_in(jr.fold_in(key, number), draw)
        key_encode, key_solve = jr.split(key_draw)
        jacobian = correction = jnp.zeros((), dtype)
        x = example
        if grey_levels is not None:
            x, correction = grey_levels.encode(
                example, key=key_encode, dtype=dtype, check=False
            )
            jacobian = grey_levels.log_jacobian(x)
        x = x.astype(dtype)
        if basis is not None:
            # Orthonormal, so that the density does not change.
            x = basis.forward(x)
        found = eqmdm.log_likelihood(
            model, x, condition=condition, key=key_solve, **method
        )
        return {
            "log_likelihood": found.log_likelihood,
            "dequantisation": correction - jacobian,
            "data_transform": jacobian,
            "standard_error": found.standard_error,
            "evaluations": found.n_evaluations,
            "converged": found.converged,
        }

    return jax.vmap(one)(examples, conditions, numbers)
