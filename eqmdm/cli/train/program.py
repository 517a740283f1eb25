"""Train a diffusion model, evaluate its likelihood bound and draw samples.

    python scripts/train.py --dataset digits

See `--help` for the options.
"""

import contextlib
import math
import sys
import time
from typing import Any, NoReturn

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

import eqmdm

from .. import build, processes
from ..build import Purpose
from ..errors import clean_errors, clean_file_errors, runtime_message
from ..preemption import PREEMPTED, Preemption
from ..processes import first_does, is_first
from . import run_directory
from .final_evaluation import stages
from .options import ResolvedTrainOptions, TrainOptions
from .profile import Profile
from .records import Records, concatenated, learned


def run(options: TrainOptions) -> None:
    # The stack is closed first: an error begins on a line of its own, below the bar.
    with clean_file_errors(), contextlib.ExitStack() as on_exit:
        train(options, on_exit)


def train(given: TrainOptions, on_exit: contextlib.ExitStack) -> None:
    # ----- Set-up: every wrong option, file or network fails here, before any work.
    with clean_errors():
        options = given.resolved()
        processes.join(options)
        run = eqmdm.Run(options.run_dir)
        first_does(lambda: run_directory.check(run, options))
        dataset = eqmdm.data.load(
            options.dataset, data_dir=options.data_dir, in_memory=not options.stream
        )
        identity = build.as_json(options, dataset)
        if options.resume:
            run.check_options(identity, may_differ=build.MAY_DIFFER)
        key = lambda purpose: build.purpose_key(options.seed, purpose)
        diffusion = build.build_diffusion(options, key(Purpose.DIFFUSION))
        network = build.build_network(options, dataset, diffusion, key(Purpose.NETWORK))
        objective = build.build_objective(options, dataset)
        optimiser = eqmdm.make_optimiser(
            options.learning_rate,
            diffusion_learning_rate=options.diffusion_learning_rate,
            clip=options.clip,
            warmup=options.warmup,
            accumulate=options.accumulate,
        )
        state = eqmdm.TrainState.create(
            (network, diffusion), optimiser, key=key(Purpose.TRAINING)
        )
        facts = build.facts(options)
        start_run = lambda: run.start(identity, facts, state.model)
        first_does(lambda: run_directory.claim(run, options, start_run))
        if options.resume:
            state = run_directory.resume(run, state)
        mesh = build.build_mesh(options.batch_size)
        shares = options.shard_parameters
        state = eqmdm.distribute(state, mesh, shard_parameters=shares)

    start = int(state.step)
    directory = run.run_dir
    records = Records(directory / "metrics.jsonl", up_to=start, writes=is_first())
    unit = "nats" if dataset.n_levels is None else "bits/dim"
    n_parameters = sum(leaf.size for leaf in eqmdm.parameters(state.model).values())
    print(
        f"{options.dataset}: {len(dataset.train)} examples of shape {dataset.shape}; "
        f"{options.diffusion} diffusion, {options.score} score, {n_parameters:,} "
        f"parameters, on {mesh.size} x {jax.devices()[0].device_kind}\n{directory}",
        flush=True,
    )

    # ----- Training.
    validation = dataset.validation[: options.validation_examples]
    # Every event falls between two calls.
    n_inner = math.gcd(
        options.steps, options.log_every, options.steps - start, max_divisor(options)
    )
    batches = build.batches(options, state, dataset.train, n_inner)
    bar = on_exit.enter_context(
        tqdm(
            total=options.steps,
            initial=start,
            unit="step",
            mininterval=1,
            disable=not is_first(),
        )
    )
    if start < options.steps:
        bar.set_description("compiling the first step")
    window, clock = [], time.perf_counter()
    step = start
    preemption = Preemption()
    profile = Profile(directory / "profile" if options.profile and is_first() else None)
    while step < options.steps:
        try:
            state, metrics = eqmdm.train_step(
                state,
                next(batches),
                objective,
                optimiser,
                batch_size=options.batch_size,
                n_inner=n_inner,
                ema_decay=options.ema_decay,
            )
        except eqx.EquinoxRuntimeError as error:
            # A check inside the step; parameters that are not finite set it off too.
            if window:
                check_finite(concatenated(window), step, run, bar)
            stop(f"at step {step + 1}: {runtime_message(error)}", run, bar)
        window.append(metrics)
        step += n_inner
        last = step == options.steps
        on_time = last or step % options.log_every == 0
        stopped_by = preemption.agreed(on_time)
        if not on_time and not stopped_by:
            continue

        # ----- A log interval is over: the only place where the host waits.
        values = concatenated(window)
        profile.stop()
        check_finite(values, step, run, bar)
        rate = len(values["loss"]) / (time.perf_counter() - clock)
        record = {name: float(value.mean()) for name, value in values.items()}
        record["steps_averaged"] = len(values["loss"])
        window = []
        # Only where a run that is never stopped would look too.
        if on_time:
            state, n_doublings = eqmdm.with_enough_doublings(state)
            if n_doublings is not None:
                bar.write(
                    f"step {step}: the learned diffusion is faster now; its kernels "
                    f"take {n_doublings} doublings, and the step is compiled again"
                )
        if options.diffusion == "learned":
            record |= learned(state.model[1])
        bar.set_description("training")
        bar.set_postfix_str(f"{record['loss']:.3f} {unit}, {rate:.1f} steps/s")
        bar.update(step - bar.n)
        records.add({"step": step} | record | {"steps_per_second": rate})

        # ----- Now and then: validation and a checkpoint.
        validated = None
        if step % options.validate_every == 0 or last:
            evaluation = eqmdm.evaluate(
                state.ema_model,
                validation,
                objective,
                key=key(Purpose.VALIDATION),
                n_draws=options.validation_draws,
                batch_size=options.batch_size,
            ).summary()
            validated = evaluation["loss"][0]
            records.add({"step": step, "validation": evaluation})
            mean, error = evaluation["loss"]
            bar.write(f"step {step}: validation {mean:.4f} +- {error:.4f} {unit}")
        if step % options.checkpoint_every == 0 or last or stopped_by:
            run.save(state, loss=validated)
        if stopped_by and not last:
            bar.close()
            print(f"{stopped_by}: stopped with a checkpoint of step {step}")
            sys.exit(PREEMPTED)
        if not last:
            profile.start()
        clock = time.perf_counter()
    bar.close()

    # ----- What the run has come to, with the averaged parameters.
    left = stages(directory, options, dataset, objective, state, records, unit)
    preemption.finish(left)
    names = sorted(p.name for p in directory.iterdir() if p.name[0] != ".")
    print(f"written: {', '.join(names)}")
    run.close()
    preemption.close()


def max_divisor(options: ResolvedTrainOptions) -> int:
    """A number whose divisors are the steps that a call may take."""
    return math.gcd(options.log_every, 1 if eqmdm.steps_per_call() == 1 else 2520)


def check_finite(values: dict[str, np.ndarray], step: int, run: Any, bar: Any) -> None:
    """Stop where a term, or the gradient, is no longer a finite number."""
    first = step - len(values["loss"]) + 1
    # The terms before their sum.
    names = sorted(values, key=lambda name: name in ("loss", "grad_norm"))
    wrong = [(int(np.argmin(np.isfinite(values[n]))), n) for n in names]
    wrong = [(i, n) for i, n in wrong if not np.isfinite(values[n][i])]
    if not wrong:
        return
    index, name = min(wrong, key=lambda found: found[0])
    value, name = values[name][index], name.replace("_", " ")
    stop(f"at step {first + index} the {name} became {value}", run, bar)


def stop(what: str, run: Any, bar: Any) -> NoReturn:
    bar.close()
    kept = f"that of step {run.steps[-1]} is kept" if run.steps else "there is none"
    sys.exit(
        f"error: {what}; stopped. No checkpoint was written since: {kept}. Try a lower "
        "--learning-rate, --diffusion-learning-rate or --clip."
    )
