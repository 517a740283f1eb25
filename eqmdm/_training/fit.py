"""Training a model in one call."""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PyTree

from .._core.checks import as_examples, check_count
from .._core.sharding import device_mesh, distribute
from .._core.types import PRNGKey
from .._levels import GreyLevels
from .._model.base import AbstractModel, check_model
from .._model.denoiser import basis_of
from ..data._dataset import Dataset
from .evaluate import Evaluation, evaluate
from .examples import TrainingSet
from .loop import Callback, train
from .objective import Objective
from .optimiser import make_optimiser
from .run import Run
from .snr_vectors import SNRVectors
from .state import TrainState
from .stream import ExampleSource


# The key tag of validation draws; the tags of a step's draws are in `step.py`.
_VALIDATION = 3


def fit(
    model: AbstractModel,
    data: Any,
    *,
    key: PRNGKey,
    condition: PyTree = None,
    drop_condition: float = 0.0,
    steps: int = 10_000,
    batch_size: int = 128,
    objective: Objective | None = None,
    optimiser: optax.GradientTransformation | None = None,
    ema_decay: float = 0.999,
    ema_profiles: bool = False,
    validation: Any = None,
    validation_condition: PyTree = None,
    n_draws: int = 1,
    run_dir: str | os.PathLike | None = None,
    log_every: int = 100,
    validate_every: int = 1000,
    checkpoint_every: int = 1000,
    callbacks: Sequence[Callback] = (),
) -> AbstractModel:
    """The trained model, with averaged parameters.

    Each batch is divided equally over the largest number of devices that divides it.

    !!! Example

        ```python
        key = jax.random.key(0)
        x = jax.random.normal(key, (1000, 2))
        network = eqmdm.nn.MLP((2,), 2, width=64, depth=2, key=key)
        model = eqmdm.NoiseModel(network, eqmdm.CLD())
        model = eqmdm.fit(model, x, key=key, run_dir="run")
        samples = eqmdm.sample(model, (2,), key=key, n_samples=64)
        model = eqmdm.load_run("run", like=model)
        ```

    **Arguments:**

    - `data`: an array of examples (first axis), an [`eqmdm.data.Dataset`][], or,
        for examples that exceed the memory of the devices, a memory-mapped array or any
        other source for [`eqmdm.BatchStream`][].
    - `condition`: the conditions of a conditional model, an array or a tree of arrays
        with one row for each example; by default those of the `Dataset`.
    - `drop_condition`: the probability with which the condition of an example is
        dropped, so that the model also learns the unconditional data.
    - `steps`: the total number of steps, including those of a resumed run.
    - `objective`: by default the bound in the default form of [`eqmdm.elbo`][]. For a
        `Dataset` of images it has uniform dequantisation, and random reflections if the
        data set uses them. For a model in a basis it also has that basis, so that
        `data` are not coefficients, and [`eqmdm.SNRVectors`][].
    - `optimiser`: any Optax optimiser; by default [`eqmdm.make_optimiser`][]`()`.
    - `ema_profiles`: whether to store two more averages with each checkpoint, from
        which [`eqmdm.posthoc_ema`][] makes one of any length after the training.
    - `validation`, `validation_condition`: validation examples and their conditions;
        by default those of the `Dataset`. `n_draws` is the number of draws of time and
        noise for each.
    - `run_dir`: the directory for checkpoints, which [`eqmdm.load_run`][] reads. If it
        already holds a run, that run is resumed, with the same result as without the
        interruption.
    - `callbacks`: functions of an [`eqmdm.FitEvent`][]. A callback stops training by
        returning a true value. [`eqmdm.Every`][] calls one every so many steps, and
        [`eqmdm.Tracking`][] sends the progress to a tracker.

    **Raises:**

    `TypeError` unless `model` is a model, or for integers without an `objective` with
    `levels`; `ValueError` for examples that are not finite or out of range, counts
    below 1, or a run with other options; `FloatingPointError` if the loss becomes
    non-finite.
    """
    check_model(model)
    data = _checked(data)
    objective = _objective(model, data, drop_condition, objective)
    optimiser = make_optimiser() if optimiser is None else optimiser
    if isinstance(data, Dataset):
        conditions = data.conditions
        if validation is None:
            validation = data.validation
            if conditions is not None:
                validation_condition = conditions.validation
        if condition is None and conditions is not None:
            condition = conditions.train
    settings = {"batch_size": batch_size, "ema_decay": ema_decay}
    every = {"log_every": log_every, "validate_every": validate_every}
    every |= {"checkpoint_every": checkpoint_every}
    _check_counts({"steps": steps, "batch_size": batch_size} | every)
    state = TrainState.create(model, optimiser, key=key, ema_profiles=ema_profiles)
    with contextlib.nullcontext() if run_dir is None else Run(run_dir) as run:
        if run is not None:
            state = _started_or_resumed(run, state, data, condition, settings)
        state, examples = _placed(state, data, condition, objective, batch_size)
        validate = _validation(
            validation, validation_condition, objective, key, n_draws, batch_size
        )
        options: dict[str, Any] = {"steps": steps, "run": run, "callbacks": callbacks}
        if not isinstance(examples, TrainingSet):
            options["condition"] = condition
        options |= settings | every | {"validate": validate}
        state = train(state, examples, objective, optimiser, **options)
    return state.ema_model


def _check_counts(counts: dict[str, int]) -> None:
    for name, count in counts.items():
        check_count(name, count)
    if jax.process_count() > 1:
        raise ValueError(
            "`fit` must be called in a single process; there are "
            f"{jax.process_count()}. Run `train.py --distributed` instead."
        )


def _checked(data: Any) -> Any:
    if isinstance(data, Dataset) or _is_streamed(data):
        return data
    return as_examples("data", data)


def _objective(
    model: AbstractModel, data: Any, drop_condition: float, given: Objective | None
) -> Objective:
    if given is not None:
        if drop_condition:
            raise ValueError(
                "`drop_condition` must be left out if there is an `objective`, which "
                f"has its own; got {drop_condition}."
            )
        return given
    basis = basis_of(model)
    in_basis: dict[str, Any] = {}
    if basis is not None:
        in_basis = {"basis": basis, "snr_vectors": SNRVectors()}
    if not isinstance(data, Dataset):
        return Objective(drop_condition=drop_condition, **in_basis)
    grey_levels = None if data.n_levels is None else GreyLevels(data.n_levels)
    scale = data.standardisation
    return Objective(
        levels=grey_levels,
        flip=data.flip,
        drop_condition=drop_condition,
        log_jacobian=0.0 if scale is None else scale.log_jacobian,
        **in_basis,
    )


def _validation(
    examples: Any,
    condition: PyTree,
    objective: Objective,
    key: PRNGKey,
    n_draws: int,
    batch_size: int,
) -> Callable[[TrainState], Evaluation] | None:
    if examples is None:
        return None
    return lambda state: evaluate(
        state.ema_model,
        examples,
        objective,
        key=jr.fold_in(key, _VALIDATION),
        condition=condition,
        n_draws=n_draws,
        batch_size=batch_size,
    )


def _placed(
    state: TrainState,
    data: Any,
    condition: PyTree,
    objective: Objective,
    batch_size: int,
) -> tuple[TrainState, TrainingSet | ExampleSource]:
    """State and examples, on the largest number of devices that divides a batch."""
    source = data.train if isinstance(data, Dataset) else data
    streams = _is_streamed(source)
    examples = source if streams else TrainingSet(source, objective, condition)
    devices = jax.devices()
    n_used = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    if n_used > 1:
        mesh = device_mesh(devices[:n_used])
        state = distribute(state, mesh)
        examples = examples if streams else distribute(examples, mesh)
    return state, examples


def _is_streamed(source: Any) -> bool:
    if isinstance(source, np.ndarray | jax.Array):
        return isinstance(source, np.memmap)
    return isinstance(source, ExampleSource)


def _started_or_resumed(
    run: Run,
    state: TrainState,
    data: Any,
    condition: PyTree,
    settings: dict[str, Any],
) -> TrainState:
    key = np.asarray(state.key).tolist()
    options = settings | {"key": key, "data_fingerprint": _fingerprint(data)}
    if condition is not None:
        leaves = jax.tree.leaves(condition)
        options["condition_fingerprint"] = [_fingerprint(leaf) for leaf in leaves]
    if state.profiles is not None:
        options["ema_profiles"] = True
    run.lock()
    if not run.exists:
        run.start(options)
        return state
    run.check_options(options)
    if not run.steps:
        return state
    restored = run.restore()
    for step, reason in restored.skipped.items():
        warnings.warn(
            f"The checkpoint of step {step} in {run.run_dir} cannot be read "
            f"({reason}); training resumes from that of step {restored.step}.",
            stacklevel=3,
        )
    run.discard(restored.skipped)
    return restored.state(state)


def _fingerprint(data: Any) -> str | None:
    """A digest of the data; `None` for a source that only training reads."""
    if isinstance(data, Dataset):
        return data.fingerprint
    if _is_streamed(data):
        return None
    examples = np.ascontiguousarray(data)
    digest = hashlib.sha256(f"{examples.dtype} {examples.shape}".encode())
    digest.update(examples.data)
    return digest.hexdigest()
