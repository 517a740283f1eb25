"""The setup of a training run from its options."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import optax

import eqmdm

from .. import build, processes
from ..bases import fit_basis
from ..build import Purpose
from ..files import LOSS_UNITS
from ..own_code import own_names
from ..processes import first_does
from . import run_directory, trackers
from .options import MAY_DIFFER, ResolvedTrainOptions, TrainOptions, as_given


@dataclasses.dataclass(frozen=True)
class Setup:
    """The objects that a run trains with."""

    options: ResolvedTrainOptions
    run: eqmdm.Run
    dataset: eqmdm.data.Dataset
    objective: eqmdm.Objective
    optimiser: optax.GradientTransformation
    state: eqmdm.TrainState
    mesh: jax.sharding.Mesh
    trackings: tuple[eqmdm.Tracking, ...]

    @property
    def loss_name(self) -> str:
        """The name of the loss in files."""
        return "nats" if self.dataset.n_levels is None else "bits_per_dim"

    @property
    def loss_unit(self) -> str:
        """The unit of the loss in text and on axes."""
        return LOSS_UNITS[self.loss_name]

    @property
    def title(self) -> str:
        options, dataset = self.options, self.dataset
        trainable = eqx.filter(self.state.model, eqx.is_inexact_array)
        sizes = [leaf.size for leaf in jax.tree.leaves(trainable)]
        return (
            f"{dataset.name}: {len(dataset.train)} examples of shape "
            f"{dataset.shape}; {options.diffusion} diffusion, {options.score} score, "
            f"{sum(sizes):,} parameters, on {self.mesh.size} x "
            f"{jax.devices()[0].device_kind}\n{self.run.run_dir}"
        )

    def key(self, purpose: Purpose) -> jax.Array:
        return build.purpose_key(self.options.seed, purpose)


def set_up(given: TrainOptions, on_exit: contextlib.ExitStack) -> Setup:
    """The run, new or resumed, whose directory is then locked until `on_exit`.

    **Raises:** `ValueError`, `TypeError` or `OSError` for every wrong option, file or
    network, before any work.
    """
    makers = trackers.find(given.tracker)
    known = given.dataset in eqmdm.data.NAMES
    if known:
        # Wrong options fail before data are downloaded.
        given = given.resolved()
    processes.join(given)
    print("setting up ...", flush=True)
    dataset = None
    if not known:
        given = _located(given)
        dataset = build.load_data(given)
        print(dataset.description, flush=True)
    options = _resolved(given, dataset)
    run = on_exit.enter_context(closed_at_the_end(eqmdm.Run(options.run_dir)))
    first_does(lambda: run_directory.check(run, options))
    dataset = build.load_data(options) if dataset is None else dataset
    data = build.DataFacts.of(options, dataset)
    identity = build.as_json(options, dataset, data)
    if options.resume:
        may_differ = set(MAY_DIFFER)
        if options.decay == "cosine":
            # The learning rates of all steps depend on their number.
            may_differ.remove("steps")
        run.check_options(identity, may_differ=tuple(may_differ))
    key = lambda purpose: build.purpose_key(options.seed, purpose)
    diffusion = build.build_diffusion(options, key(Purpose.DIFFUSION))
    basis = fit_basis(options, dataset)
    model = build.build_model(options, data, diffusion, key(Purpose.NETWORK), basis)
    objective = build.build_objective(options, dataset, basis)
    n_updates = options.steps // options.accumulate
    optimiser = eqmdm.make_optimiser(
        options.learning_rate,
        diffusion_learning_rate=options.diffusion_learning_rate,
        clip=options.clip,
        warmup=options.warmup,
        decay_steps=n_updates if options.decay == "cosine" else None,
        accumulate=options.accumulate,
    )
    state = eqmdm.TrainState.create(
        model,
        optimiser,
        key=key(Purpose.TRAINING),
        ema_profiles=options.ema_profiles,
    )
    facts = build.facts(options.seed)
    if dataset.description:
        facts["data_found"] = dataset.description
    # A run with the user's own code is rebuilt only by those who trust it.
    builder = None if own_names(options) else build.MODEL_BUILDER
    start_run = lambda: run.start(identity, facts, builder=builder)
    first_does(lambda: run_directory.claim(run, options, start_run))
    if options.resume:
        state = run_directory.resume(run, state)
    mesh = build.build_mesh(options.batch_size)
    shares = options.shard_parameters
    state = eqmdm.distribute(state, mesh, shard_parameters=shares)
    loss_name = "nats" if dataset.n_levels is None else "bits_per_dim"
    record = {"options": identity, **facts}
    trackings = trackers.make_trackings(makers, run.run_dir, record, loss_name)
    for tracking in trackings:
        on_exit.enter_context(tracking)
    return Setup(options, run, dataset, objective, optimiser, state, mesh, trackings)


def _located(options: TrainOptions) -> TrainOptions:
    """The options with an absolute path of the data, so that the programs that load the
    run find them from any directory."""
    path = Path(options.dataset).expanduser()
    if not path.exists():
        return options
    return dataclasses.replace(options, dataset=str(path.absolute()))


def _resolved(
    given: TrainOptions, dataset: eqmdm.data.Dataset | None
) -> ResolvedTrainOptions:
    """The options with all defaults filled in; those that follow from the shape of the
    examples are printed."""
    if dataset is None:
        assert isinstance(given, ResolvedTrainOptions)
        return given
    options = given.resolved(dataset.shape, dataset.n_levels)
    names = ["network", "width", "n_blocks", "batch_size", "steps"]
    if options.network == "unet":
        names[2:2] = ["multipliers", "patch"]
    chosen = {name: getattr(options, name) for name in names}
    by_size = {k: v for k, v in chosen.items() if getattr(given, k) is None}
    if by_size:
        shown = " ".join(
            f"--{k.replace('_', '-')} {as_given(v)}" for k, v in by_size.items()
        )
        print(f"by the size of examples: {shown}", flush=True)
    return options


@contextlib.contextmanager
def closed_at_the_end(run: eqmdm.Run) -> Iterator[eqmdm.Run]:
    """Close the run, which waits for its last checkpoint, even after an error."""
    try:
        yield run
    except BaseException:
        # An error while closing follows from the first one, which is the one to show.
        with contextlib.suppress(Exception):
            run.close()
        raise
    run.close()
