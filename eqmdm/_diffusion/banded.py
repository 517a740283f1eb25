"""Linear diffusions whose matrices differ by coordinate, in bands."""

from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree
from wadler_lindig import AbstractDoc

from .._core.checks import concrete, constant
from .._core.gaussian import Gaussian, Transition
from .._core.types import RankMatrix, Scalar, VarsMatrix
from .base import AbstractLinearDiffusion
from .interval import Interval, TimeInterval, known_times
from .process import AbstractProcess
from .stationary import AbstractStationaryDiffusion
from .text import call_text


@final
class BandedDiffusion(AbstractLinearDiffusion):
    r"""A diffusion whose coordinates follow one of several diffusions each.

    A *band* is a set of coordinates that share their matrices. In an orthonormal basis
    of the data other than the pixels, a band may be a scale or a range of frequencies:
    transform the data first. All bands run on one time, so the log signal-to-noise
    ratios at a time differ by band. Where one number is needed, for grids and clocks in
    log-SNR, it is the mean over the coordinates.

    A denoiser has to be told the log-SNR of every coordinate, as by
    [`eqmdm.VectorDenoiser`][]; a [`eqmdm.NoiseModel`][] is trained on this diffusion
    alone. For the exact denoiser the bound depends on the log-SNRs at t0 and t1, not
    on the way between them.

    !!! Example

        ```python
        slow = eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, 5.0))
        fast = eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, 20.0))
        diffusion = eqmdm.BandedDiffusion([slow, fast], bands=[0, 0, 1, 1])
        ```

    **Arguments:**

    - `diffusions`: one linear diffusion for each band, with the same number of
        variables and the same `TimeInterval`. For many bands that are alike pass one
        diffusion with a leading axis on its arrays instead, as
        `eqx.filter_vmap(lambda rate: eqmdm.VPSDE(schedule=eqmdm.ConstantSchedule(rate))
        )(rates)` makes it: thousands of objects would be slow to pass about.
    - `bands`: the band of each coordinate, integers from 0 in the shape of the data.

    **Raises:**

    `TypeError` for something that is not a linear diffusion; `ValueError` for bands
    that are not integers in the range of the diffusions, and for diffusions with
    another number of variables or another interval than the first.
    """

    _groups: tuple["_Group", ...]
    # The place of each coordinate's band among those of all groups, in bytes, which
    # stay known inside a trace.
    _places: bytes = eqx.field(static=True)
    data_shape: tuple[int, ...] = eqx.field(static=True)
    _n_vars: int = eqx.field(static=True)
    _interval: TimeInterval

    def __init__(
        self,
        diffusions: AbstractLinearDiffusion | Sequence[AbstractLinearDiffusion],
        bands: ArrayLike | Sequence[Any],
    ):
        if isinstance(diffusions, AbstractLinearDiffusion):
            first = [diffusions]
            self._groups, order = (_Group.of_stack(diffusions),), None
        else:
            first = list(diffusions)
            _check_diffusions(first)
            self._groups, order = _grouped(first)
        n_bands = sum(group.n_bands for group in self._groups)
        places = _as_bands(bands, n_bands)
        self.data_shape = places.shape
        places = places if order is None else order[places]
        self._places = places.astype(np.int32).tobytes()
        self._interval = _shared_interval(first)
        group = self._groups[0]
        self._n_vars = group.by_band(lambda band: band.prior.root).shape[1]

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        kinds = [
            f"{group.n_bands} {type(group.template).__name__}" for group in self._groups
        ]
        return call_text(self, *kinds, bands=f"of shape {self.data_shape}")

    @property
    def is_stationary(self) -> bool:
        """Whether every band has a stationary law."""
        kinds = (type(group.template) for group in self._groups)
        return all(issubclass(kind, AbstractStationaryDiffusion) for kind in kinds)

    @property
    def n_vars(self) -> int:
        return self._n_vars

    @property
    def interval(self) -> Interval:
        return self._interval

    @property
    def t_limit(self) -> Scalar:
        limits = [group.by_band(lambda band: band.t_limit) for group in self._groups]
        return jnp.min(jnp.concatenate(limits))

    @property
    def prior(self) -> Gaussian:
        return Gaussian(self.by_coordinate(lambda band: band.prior.root))

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns *coordinates"]:
        return self.by_coordinate(lambda band: band.start_root(dtype))

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        return self.by_coordinate(lambda band: band.drift_matrix(t))

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        return self.by_coordinate(lambda band: band.diffusion_matrix(t))

    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        return self.by_coordinate(lambda band: band.compute_transition(s, t))

    def by_coordinate(
        self, function: Callable[[AbstractLinearDiffusion], PyTree]
    ) -> PyTree:
        """The value of a function of a diffusion for every coordinate, with the axes of
        the data last.

        It is computed once for every band. Matrices of different numbers of columns are
        padded with zeros.
        """
        places = np.frombuffer(self._places, np.int32).reshape(self.data_shape)
        values = [group.by_band(function) for group in self._groups]
        return jax.tree.map(lambda *parts: _joined(parts)[..., places], *values)


def _joined(parts: Sequence[Array]) -> Float[Array, "..."]:
    """The values of all bands, with the axis of the bands last."""
    if parts[0].ndim > 2:
        most = max(part.shape[2] for part in parts)
        widths = [[(0, 0)] * part.ndim for part in parts]
        for width, part in zip(widths, parts, strict=True):
            width[2] = 0, most - part.shape[2]
        parts = [jnp.pad(part, w) for part, w in zip(parts, widths, strict=True)]
    return jnp.moveaxis(jnp.concatenate(parts), 0, -1)


def check_data_shape(diffusion: AbstractProcess, shape: tuple[int, ...]) -> None:
    """**Raises:** `ValueError` for data of another shape than the bands of a
    diffusion."""
    if isinstance(diffusion, BandedDiffusion) and diffusion.data_shape != shape:
        raise ValueError(
            "The data must have the shape of the `bands` of the diffusion, "
            f"{diffusion.data_shape}; got {shape}."
        )


@final
class _Group(eqx.Module):
    """Bands whose diffusions have the same structure, stacked.

    The leaves of `template` at the places `stacked` are parameters, and have the
    leading axis of the bands. Those at `varying` are constants that differ by band:
    `values` has those of all bands for each place.
    """

    template: AbstractLinearDiffusion
    stacked: tuple[int, ...] = eqx.field(static=True)
    varying: tuple[int, ...] = eqx.field(static=True)
    values: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    n_bands: int = eqx.field(static=True)

    @classmethod
    def of_stack(cls, diffusion: AbstractLinearDiffusion) -> "_Group":
        leaves = dict(enumerate(jax.tree.leaves(diffusion)))
        shapes = {i: leaf.shape for i, leaf in leaves.items() if eqx.is_array(leaf)}
        lengths = {shape[:1] for shape in shapes.values()}
        if len(lengths) != 1 or () in lengths:
            raise ValueError(
                "`diffusions` must be a sequence with one diffusion for each band, or "
                "one diffusion whose arrays all have the axis of the bands first, as "
                "`eqx.filter_vmap` makes it; got one diffusion with arrays of shapes "
                f"{list(shapes.values())}."
            )
        return cls(diffusion, tuple(shapes), (), (), lengths.pop()[0])

    @classmethod
    def of_members(cls, members: Sequence[AbstractLinearDiffusion]) -> "_Group":
        leaves, structure = jax.tree.flatten(members[0])
        columns = list(zip(*map(jax.tree.leaves, members), strict=True))
        stacked, varying = [], []
        for place, column in enumerate(columns):
            if eqx.is_array(column[0]):
                stacked.append(place)
                leaves[place] = jnp.stack(column)
            elif isinstance(column[0], float) and len(set(column)) > 1:
                varying.append(place)
        values = tuple(columns[place] for place in varying)
        template = jax.tree.unflatten(structure, leaves)
        return cls(template, tuple(stacked), tuple(varying), values, len(members))

    def by_band(self, function: Callable[[AbstractLinearDiffusion], PyTree]) -> PyTree:
        """The values for the bands, with a leading axis."""
        leaves, structure = jax.tree.flatten(self.template)
        mapped = {place: leaves[place] for place in self.stacked}
        for place, values in zip(self.varying, self.values, strict=True):
            mapped[place] = constant(np.array(values, jnp.result_type(float)))

        def of_band(mapped: dict[int, Array]) -> PyTree:
            own = [mapped.get(place, leaf) for place, leaf in enumerate(leaves)]
            return function(jax.tree.unflatten(structure, own))

        if mapped:
            return jax.vmap(of_band)(mapped)
        # The bands do not differ.
        repeat = lambda x: jnp.broadcast_to(x[None], (self.n_bands, *x.shape))
        return jax.tree.map(repeat, of_band({}))


def _grouped(
    diffusions: Sequence[AbstractLinearDiffusion],
) -> tuple[tuple[_Group, ...], np.ndarray]:
    """The groups, and the place of each diffusion among the bands of all groups."""
    members: dict[Any, list[int]] = {}
    for i, diffusion in enumerate(diffusions):
        leaves, structure = jax.tree.flatten(diffusion)
        kinds = tuple(_kind(leaf) for leaf in leaves)
        members.setdefault((structure, kinds), []).append(i)
    order = np.empty(len(diffusions), int)
    order[np.concatenate(list(members.values()))] = np.arange(len(diffusions))
    groups = (_Group.of_members([diffusions[i] for i in m]) for m in members.values())
    return tuple(groups), order


def _kind(leaf: Any) -> Any:
    """What must agree between leaves to be stacked: the shape and dtype of an array,
    and the value of anything that is not a float."""
    if eqx.is_array(leaf):
        return leaf.shape, str(leaf.dtype)
    return float if isinstance(leaf, float) else leaf


def _check_diffusions(diffusions: Sequence[Any]) -> None:
    if not diffusions:
        raise ValueError(
            "`diffusions` must have one diffusion for each band; got none."
        )
    for i, diffusion in enumerate(diffusions):
        if not isinstance(diffusion, AbstractLinearDiffusion):
            raise TypeError(
                "`diffusions` must be linear diffusions, such as `eqmdm.CLD()`; got "
                f"{type(diffusion).__name__} for band {i}."
            )
    n_vars = [diffusion.n_vars for diffusion in diffusions]
    if len(set(n_vars)) > 1:
        raise ValueError(
            "`diffusions` must all have the same number of variables; got "
            f"{sorted(set(n_vars))}."
        )


def _as_bands(bands: Any, n_bands: int) -> np.ndarray:
    bands = np.asarray(bands)
    if not np.issubdtype(bands.dtype, np.integer) or bands.size == 0:
        raise ValueError(
            "`bands` must be integers, the band of each coordinate in the shape of the "
            f"data; got dtype {bands.dtype} and shape {bands.shape}."
        )
    low, high = int(bands.min()), int(bands.max())
    if low < 0 or high >= n_bands:
        raise ValueError(
            f"`bands` must lie between 0 and {n_bands - 1}, as there are {n_bands} "
            f"diffusions; got {low} to {high}."
        )
    return bands


def _shared_interval(diffusions: Sequence[AbstractLinearDiffusion]) -> TimeInterval:
    intervals = [known_times(diffusion.interval) for diffusion in diffusions]
    ends = [
        (concrete(interval.t0), concrete(interval.t1))
        for interval in intervals
        if interval is not None and np.ndim(interval.t0) == np.ndim(interval.t1) == 0
    ]
    known = np.array([end for end in ends if None not in end], float)
    if len(known) < len(intervals):
        raise ValueError(
            "`diffusions` must have an `interval` of known times, because all bands "
            "share them, and those of an interval in log-SNR move with the parameters "
            "of each. Use an `eqmdm.TimeInterval`; the schedules set the log-SNRs."
        )
    furthest = known[np.argmax(np.abs(known - known[0]).sum(axis=1))]
    if not np.allclose(furthest, known[0], rtol=1e-6, atol=0.0):
        raise ValueError(
            "`diffusions` must all have the same `interval` in time; got "
            f"{known[0].tolist()} and {furthest.tolist()}. Give each the same "
            "`eqmdm.TimeInterval`; the schedules set the log-SNRs."
        )
    return TimeInterval(*known[0].tolist())
