"""The comparison of solvers by the distances of their samples from the data."""

import math
import time
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqmdm

from .. import build
from ..bases import basis_of, to_pixels
from ..build import Purpose
from ..clocks import CLOCKS
from ..conditions import in_turn
from ..errors import runtime_message
from ..solvers import find_method
from ..trained import TrainedRun
from .features import Features
from .options import SolverStudyOptions


_GRIDS = {
    "uniform": eqmdm.UniformGrid(),
    "quadratic": eqmdm.QuadraticGrid(),
    "log_snr": eqmdm.LogSNRGrid(),
    "rho": eqmdm.RhoGrid(),
}
# The tolerance and step limit of the accurate reference solution.
_TOLERANCE, _MAX_STEPS = 1e-6, 4096


def check_n_samples(n: int, dataset: Any) -> None:
    """**Raises:** `ValueError` if there are too few real examples for the samples."""
    n_held_out = len(dataset.validation) + len(dataset.test)
    most = max(len(dataset.train), n_held_out // 2)
    if n > most:
        raise ValueError(
            f"`n_samples` must be at most {most}, the number of real examples to "
            f"compare with; got {n}."
        )


class SolverComparison:
    """The data, features and settings that all rows of a study share."""

    def __init__(
        self,
        options: SolverStudyOptions,
        runs: dict[str, TrainedRun],
        features: Features | None,
    ):
        size = min(options.batch_size, options.n_samples)
        runs = {name: s.over_devices(size) for name, s in runs.items()}
        self._options, self._runs, self._features = (
            options,
            runs,
            features,
        )
        # All runs have the same data.
        trained = next(iter(runs.values()))
        self._dataset, self._dtype = trained.dataset, trained.dtype
        self._grey_levels = build.build_grey_levels(trained.options, trained.dataset)
        self._basis = basis_of(trained.model)
        self._held_out, self._real, self.real_split = self._choose()
        self.n_held_out = len(self._held_out)
        self._references: dict[tuple[str, str], np.ndarray] = {}
        if features is not None:
            self._held_out_features = features.function(self._held_out)

    @property
    def n_batches(self) -> int:
        return -(-self._options.n_samples // self._options.batch_size)

    def real_data(self) -> dict[str, Any]:
        """The row of real examples, as many as there are samples."""
        return self._quality(self._real)

    def row(
        self, diffusion: str, name: str, allowed: int, progress: Callable[[], Any]
    ) -> dict[str, Any]:
        """The row of a solver, given by name, or the reason why it failed.

        `progress` is called after each batch.
        """
        method = find_method(name)
        n_steps = method.steps_within(allowed)
        if n_steps == 0:
            least = method.least_evaluations("solvers")
            return {"failure": f"--evaluations must be at least {least}"}
        row: dict[str, Any] = {
            "steps": n_steps,
            "evaluations": method.n_evaluations(n_steps),
        }
        grid = _GRIDS.get(self._options.grid)
        sampler = method.sampler_on(grid, CLOCKS[self._options.clock])
        arguments = {"sampler": sampler, "n_steps": n_steps}
        try:
            x, row["seconds"] = self._draw(self._runs[diffusion], arguments, progress)
        # The solver does not support the diffusion or the number of steps.
        except (TypeError, ValueError) as error:
            return row | {"failure": " ".join(str(error).split())}
        except eqx.EquinoxRuntimeError as error:
            return row | {"failure": runtime_message(error)}
        lost = np.count_nonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if lost:
            return row | {"failure": f"{lost} of {len(x)} samples are not finite"}
        row |= self._quality(self._decode(x))
        if method.deterministic and self._options.reference_samples:
            row |= self._error(diffusion, method, x)
        return row

    def _draw(
        self,
        trained: TrainedRun,
        arguments: dict[str, Any],
        progress: Callable[[], Any],
    ) -> tuple[np.ndarray, float]:
        """The samples, and the seconds that they take without compilation."""
        size = min(self._options.batch_size, self._options.n_samples)
        parts, times = [], []
        for number in range(self.n_batches):
            clock = time.perf_counter()
            parts.append(self._batch(trained, number * size, size, arguments))
            times.append(time.perf_counter() - clock)
            progress()
        if len(times) == 1:
            clock = time.perf_counter()
            self._batch(trained, 0, size, arguments)
            times.append(time.perf_counter() - clock)
        n = self._options.n_samples
        # Only the first batch includes compilation, and all have the same size.
        return np.concatenate(parts)[:n], float(np.mean(times[1:])) * n / size

    def _batch(
        self, trained: TrainedRun, first: int, n: int, arguments: dict
    ) -> np.ndarray:
        x = eqmdm.sample(
            trained.model,
            self._dataset.shape,
            key=self._key(Purpose.SAMPLES),
            n_samples=n,
            conditions=in_turn(trained.condition, trained.dataset, first, n),
            first=first,
            dtype=self._dtype,
            **arguments,
        )
        return np.asarray(x)

    def _quality(self, x: np.ndarray) -> dict[str, float]:
        """The distances of decoded samples from the held-out examples."""
        flat, held_out = (self._pixels(part) for part in (x, self._held_out))
        key = self._key(Purpose.DIRECTIONS)
        distances = {
            "sliced_wasserstein": eqmdm.sliced_wasserstein(flat, held_out, key=key),
            "squared_mmd": eqmdm.maximum_mean_discrepancy(flat, held_out),
        }
        if self._features is not None:
            features = self._features.function(x)
            distances["frechet"] = eqmdm.frechet_distance(
                features, self._held_out_features
            )
        row = {}
        for name, (value, error) in distances.items():
            row |= {name: value, f"{name}_error": error}
        return row

    def _error(self, diffusion: str, method: Any, x: np.ndarray) -> dict[str, float]:
        """The root-mean-square distance to an accurate reference solution."""
        n = min(self._options.reference_samples, len(x))
        gaps = (x[:n] - self._reference(diffusion, method)).reshape(n, -1)
        squares = np.mean(gaps.astype(np.float64) ** 2, axis=1)
        # Leave out samples whose reference solution failed.
        squares = squares[np.isfinite(squares)]
        if len(squares) < 2:
            return {}
        rms = math.sqrt(squares.mean())
        error = squares.std(ddof=1) / math.sqrt(len(squares))
        error = error / (2 * rms) if rms else 0.0
        return {"reference_rms": rms, "reference_rms_error": error}

    def _reference(self, diffusion: str, method: Any) -> np.ndarray:
        arguments = self._tight(method)
        name = diffusion, repr(arguments["sampler"])
        if name not in self._references:
            n = min(self._options.reference_samples, self._options.n_samples)
            size = min(n, self._options.batch_size)
            trained = self._runs[diffusion]
            parts = [
                self._batch(trained, i, size, arguments) for i in range(0, n, size)
            ]
            self._references[name] = np.concatenate(parts)[:n]
        return self._references[name]

    def _tight(self, method: Any) -> dict[str, Any]:
        """The arguments of `sample` for the reference of a solver without noise."""
        if method.process is not None:
            sampler = eqmdm.DiffraxSampler(
                dfx.Tsit5(),
                method.process,
                stepsize_controller=dfx.PIDController(rtol=_TOLERANCE, atol=_TOLERANCE),
                max_steps=_MAX_STEPS,
            )
            return {"sampler": sampler}
        sampler = eqmdm.DPMSolver(order=3)
        return {"sampler": sampler, "n_steps": self._options.reference_steps}

    def _decode(self, x: np.ndarray) -> np.ndarray:
        """Samples decoded to the form in which examples are stored."""
        x = to_pixels(self._basis, x)
        if self._grey_levels is None:
            return x
        levels = np.asarray(self._grey_levels.decode(jnp.asarray(x)))
        return levels.astype(self._dataset.train.dtype)

    def _pixels(self, x: np.ndarray) -> np.ndarray:
        """Grey levels scaled to [0, 1]; points unchanged."""
        n_levels = self._dataset.n_levels
        return x if n_levels is None else x.astype(np.float64) / (n_levels - 1)

    def _choose(self) -> tuple[np.ndarray, np.ndarray, str]:
        """The held-out examples, as many other real examples as there are samples, and
        the split that these come from."""
        n, train = self._options.n_samples, self._dataset.train
        held_out = np.concatenate([self._dataset.validation, self._dataset.test])
        key = self._key(Purpose.HELD_OUT)
        some = lambda examples, first, n: examples[
            np.asarray(eqmdm.data.shuffled_indices(key, first, n, len(examples)))
        ]
        if 2 * n <= len(held_out):
            return some(held_out, 0, n), some(held_out, n, n), "held out"
        return some(held_out, 0, min(n, len(held_out))), some(train, 0, n), "training"

    def _key(self, purpose: int) -> jax.Array:
        return build.purpose_key(self._options.seed, purpose)
