"""The observations that `--observe` names."""

import dataclasses
import math
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm import observe

from .. import build
from ..bases import basis_of
from ..build import Purpose
from ..trained import TrainedRun
from .options import SampleOptions


_KINDS = (
    "mask:left-half, mask:top-half, mask:center:N, mask:random:FRACTION, "
    "downsample:F, blur:STD or a file .npz"
)
METHODS = {
    "auto": None,
    "exact": eqmdm.Exact(),
    "moment-matching": eqmdm.MomentMatching(),
}


@dataclasses.dataclass(frozen=True)
class Observed:
    """An observation of one image.

    - `image`: the number of the test image, or `None` if the numbers are from a file.
    - `truth`: the image in the units of the model, if it is known.
    - `shown`: what is seen, as an image; NaN where nothing is.
    """

    image: int | None
    truth: np.ndarray | None
    observation: eqmdm.LinearObservation
    shown: np.ndarray


def observations(options: SampleOptions, trained: TrainedRun) -> list[Observed]:
    """The observations that the options name.

    **Raises:** `ValueError` for options that do not suit the run, and for a file that
    holds no observation.
    """
    dataset, shape = trained.dataset, trained.dataset.shape
    levels = build.build_grey_levels(trained.options, dataset)
    if levels is None or len(shape) != 3:
        raise ValueError(
            "`observe` must be left out for this run, whose data are not images; got "
            f"{options.observe}. In Python, `model.given(observation)` takes any data."
        )
    if trained.options.transform != "scale":
        raise ValueError(
            "`observe` must be left out for this run, whose model sees pixels by the "
            f"{trained.options.transform} transform, of which linear observations are "
            f"not those of pixels; got {options.observe}. Train with --transform scale."
        )
    basis = basis_of(trained.model)
    if options.is_file:
        return [_from_file(options, shape, basis)]
    n = len(dataset.test)
    for number in options.observe_image:
        if not 0 <= number < n:
            raise ValueError(
                f"`observe_image` must be from 0 to {n - 1}, the test images of "
                f"{dataset.name}; got {number}."
            )
    operator, show = _operator(options, shape, basis)
    found = []
    for number in options.observe_image:
        # The same numbers whatever other images are observed.
        key = build.purpose_key(options.seed, Purpose.OBSERVATIONS)
        key_x, key_noise = jr.split(jr.fold_in(key, number))
        image = jnp.asarray(dataset.test[number])
        x, _ = levels.encode(image, key=key_x, dtype=trained.dtype)
        clean = operator.mv(x if basis is None else basis.forward(x))
        noise = jr.normal(key_noise, clean.shape, clean.dtype)
        value = clean + options.observe_noise * noise
        observation = _observation(operator, value, options.observe_noise)
        found.append(Observed(number, np.asarray(x), observation, show(value)))
    return found


def given(
    options: SampleOptions, model: eqmdm.AbstractModel, observed: Observed
) -> eqmdm.ObservedModel:
    """The model given an observation.

    **Raises:** `ValueError` if the method does not suit the model or the observation.
    """
    method = METHODS[options.observe_method]
    try:
        conditional = model.given(observed.observation, method)
    except ValueError as error:
        if options.observe_method == "exact":
            raise ValueError(
                f"`observe_method` must not be exact for this run and {options.observe}"
                f": {error} Or leave the choice to --observe-method auto."
            ) from error
        raise
    assert isinstance(conditional, eqmdm.ObservedModel)
    return conditional


def _observation(
    operator: Any, value: Any, noise_std: float | np.ndarray
) -> eqmdm.LinearObservation:
    try:
        return eqmdm.LinearObservation(operator, value, noise_std)
    except ValueError as error:
        # Its arguments are those of the file or the option.
        raise ValueError(f"`observe` must give an observation: {error}") from error


def _operator(
    options: SampleOptions, shape: tuple[int, ...], basis: eqmdm.AbstractBasis | None
) -> tuple[Any, Callable[[Any], np.ndarray]]:
    """The operator on the data of the model, and a function that makes an image of what
    it gives."""
    assert options.observe is not None
    kind, _, setting = options.observe.partition(":")
    if kind == "mask":
        seen = np.broadcast_to(_mask(options, setting, shape)[..., None], shape)

        def show(value: Any) -> np.ndarray:
            image = np.full(shape, np.nan)
            image[seen] = np.asarray(value)
            return image

        return observe.mask(seen, basis=basis), show
    try:
        if kind == "downsample":
            factor = int(setting)
            operator = observe.downsample(shape, factor, basis=basis)
            repeat = lambda value, axis: np.repeat(value, factor, axis)
            return operator, lambda value: repeat(repeat(np.asarray(value), 0), 1)
        if kind == "blur":
            return observe.blur(shape, float(setting), basis=basis), np.asarray
    except ValueError as error:
        raise ValueError(
            f"`observe` must be {_KINDS}; got {options.observe}, which is wrong: "
            f"{error}"
        ) from error
    raise ValueError(f"`observe` must be {_KINDS}; got {options.observe}.")


def _mask(options: SampleOptions, setting: str, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels that are seen, of shape (height, width)."""
    height, width = shape[:2]
    seen = np.zeros((height, width), bool)
    name, _, number = setting.partition(":")
    wrong = ValueError(
        f"`observe` must be {_KINDS}, with N from 1 to {min(height, width) - 1} and "
        f"FRACTION above 0 and below 1; got {options.observe}."
    )
    try:
        if setting == "left-half":
            seen[:, : width // 2] = True
        elif setting == "top-half":
            seen[: height // 2] = True
        elif name == "center" and 1 <= int(number) < min(height, width):
            side = int(number)
            top, left = (height - side) // 2, (width - side) // 2
            seen[:] = True
            seen[top : top + side, left : left + side] = False
        elif name == "random" and 0 < float(number) < 1:
            count = max(1, math.floor(float(number) * seen.size))
            generator = np.random.default_rng(options.seed)
            seen.flat[generator.permutation(seen.size)[:count]] = True
        else:
            raise wrong
    except ValueError as error:
        raise wrong from error
    return seen


def _from_file(
    options: SampleOptions, shape: tuple[int, ...], basis: eqmdm.AbstractBasis | None
) -> Observed:
    try:
        with np.load(str(options.observe), allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`observe` must be a file that can be read; got {options.observe} "
            f"({error})."
        ) from error
    if not {"A", "o"} <= set(parts):
        raise ValueError(
            "`observe` must be a file with a matrix A and numbers o, and if they have "
            f"noise its noise_std; {options.observe} has "
            f"{', '.join(sorted(parts)) or 'nothing'}."
        )
    try:
        operator = observe.dense(parts["A"], shape, basis=basis)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`observe` must hold a matrix A: {error}") from error
    value = np.asarray(parts["o"]).astype(jax.dtypes.canonicalize_dtype(float))
    noise_std = parts.get("noise_std", options.observe_noise)
    observation = _observation(operator, value, noise_std)
    # The smallest image that gives the numbers.
    shown, *_ = np.linalg.lstsq(np.asarray(parts["A"], float), value, rcond=None)
    return Observed(None, None, observation, shown.reshape(shape))
