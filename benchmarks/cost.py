"""How do the costs of bound, sampling and likelihood grow with K, image and batch?

    python benchmarks/cost.py

Starting from one case, CLD (K = 2) on 16 images of 16x16, changes one setting at a
time: the diffusion, with K = 1, 2, 3 variables; the image side; the batch size. All
cases of a task are interleaved in one run. A ratio is the median over the repeats of
the seconds per image over those of the first case in the same repeat. Tasks:

- `bound`: one draw of `eqmdm.elbo` for each image,
- `sampling`: `eqmdm.sample`, by `DPMSolver` with a denoiser, else by Diffrax's SEA,
- `likelihood`: `eqmdm.log_likelihood`, by the collapsed route with a denoiser, else by
    the augmented one, with one probe for the divergence,

each with a denoiser, whose network sees K = 1, and with a free score, whose network
sees all K variables. Samples and likelihoods take `n_steps` steps in every case, so
these are costs of equal work, not of equal accuracy.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import _common as common
import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import eqmdm


Call = Callable[[jax.Array], Any]
Score = Literal["denoiser", "free"]


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times bound, sampling and likelihood against K, image size and batch."""

    diffusions: tuple[str, ...] = ("VPSDE", "CLD", "MALDA")
    """Named diffusions of the library; the second is that of the base case."""
    sides: tuple[int, ...] = (16, 8, 32)
    """Image sides; the first is that of the base case."""
    batch_sizes: tuple[int, ...] = (16, 1, 4, 64)
    """Batch sizes; the first is that of the base case."""
    width: int = 32
    """Channels of the U-Net's first level; the second has twice as many."""
    n_steps: int = 10
    """Steps of samplers, and of Heun's method for likelihoods."""
    repeats: int = 9
    """Timed calls of each case, after one that compiles."""
    seed: int = 0
    """The seed of parameters, images and draws."""
    table: Path | None = None
    """A Markdown file for the tables."""
    from_results: Path | None = None
    """A JSON file with results: only make its tables, without new measurements."""
    quick: bool = False
    """Run two cases of each task, with a tiny network and two repeats."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The settings of one case."""

    diffusion: str
    side: int
    batch_size: int


def cases(settings: Settings) -> list[Case]:
    """The base case, and those that differ from it in one setting."""
    kept = Case(
        settings.diffusions[min(1, len(settings.diffusions) - 1)],
        settings.sides[0],
        settings.batch_sizes[0],
    )
    changed = [
        *(dataclasses.replace(kept, diffusion=name) for name in settings.diffusions),
        *(dataclasses.replace(kept, side=side) for side in sorted(settings.sides)),
        *(
            dataclasses.replace(kept, batch_size=n)
            for n in sorted(settings.batch_sizes)
        ),
    ]
    return [kept, *(case for case in changed if case != kept)]


def make_score(settings: Settings, case: Case, diffusion: Any, score: Score) -> Any:
    network = eqmdm.nn.UNet(
        (case.side, case.side, 1),
        1 if score == "denoiser" else diffusion.n_vars,
        width=settings.width,
        multipliers=(1, 2),
        n_blocks=1,
        key=jr.key(settings.seed),
    )
    if score == "free":
        return eqmdm.NoiseModel(network, diffusion)
    denoiser = eqmdm.PreconditionedDenoiser(
        network, data_std=0.5, log_snr_range=(-15.0, 15.0)
    )
    return eqmdm.DenoiserModel(denoiser, diffusion)


def make_call(task: str, score: Score, case: Case, settings: Settings) -> Call:
    """A function of a key that runs the task once for a batch."""
    diffusion = getattr(eqmdm, case.diffusion)(interval=eqmdm.LogSNRInterval(-9.0, 9.0))
    model = make_score(settings, case, diffusion, score)
    shape = (case.side, case.side, 1)
    x = 0.5 * jr.normal(jr.key(settings.seed), (case.batch_size, *shape))

    def over_batch(one: Callable[[jax.Array, jax.Array], Any]) -> Call:
        of_all = jax.jit(jax.vmap(one))
        return lambda key: of_all(x, jr.split(key, case.batch_size))

    if task == "bound":
        return over_batch(lambda x, key: eqmdm.elbo(model, x, key=key).total)
    if task == "sampling":
        return lambda key: eqmdm.sample(
            model,
            shape,
            key=key,
            n_samples=case.batch_size,
            n_steps=settings.n_steps,
            sampler=eqmdm.DPMSolver() if score == "denoiser" else dfx.SEA(),
        )
    if score == "denoiser":
        route = eqmdm.CollapsedRoute(eqmdm.LogSNRClock())
        ends = -diffusion.log_snr(diffusion.t0), -diffusion.log_snr(diffusion.t1)
    else:
        route, ends = eqmdm.AugmentedRoute(), (diffusion.t0, diffusion.t1)
    steps = jnp.linspace(*ends, settings.n_steps + 1)
    return over_batch(
        lambda x, key: (
            eqmdm.log_likelihood(
                model,
                x,
                key=key,
                route=route,
                divergence=eqmdm.HutchinsonDivergence(),
                solver=dfx.Heun(),
                stepsize_controller=dfx.StepTo(steps),
            ).log_likelihood
        )
    )


def run(task: str, score: Score, settings: Settings) -> list[dict[str, Any]]:
    """The row of each case."""
    all_cases = cases(settings)
    calls = [make_call(task, score, case, settings) for case in all_cases]
    key = jr.key(settings.seed)
    for call in calls:
        common.timed(call, key)
    times = common.interleaved(
        dict(enumerate(calls)), settings.repeats, lambda i: (jr.fold_in(key, i),)
    )
    seconds = np.array(list(times.values())).T
    seconds /= np.asarray([case.batch_size for case in all_cases])
    ratios = seconds / seconds[:, :1]
    rows = []
    for j, case in enumerate(all_cases):
        low, ratio, high = np.quantile(ratios[:, j], (0.25, 0.5, 0.75))
        row = {"task": task, "score": score} | dataclasses.asdict(case)
        row |= {"n_vars": getattr(eqmdm, case.diffusion)().n_vars}
        row |= {"images_per_second": 1 / float(np.median(seconds[:, j]))}
        row |= {
            "cost_of_an_image": float(ratio),
            "quartiles": [float(low), float(high)],
        }
        rows.append(row | {"every_second": seconds[:, j].tolist()})
    return rows


def render(record: dict[str, Any]) -> str:
    """The tables as Markdown, with a description."""
    settings, rows = record["settings"], record["results"]
    first = rows[0]
    kept = Case(first["diffusion"], first["side"], first["batch_size"])
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    lines = [
        "# How bound, sampling and likelihood grow",
        "",
        f"Seconds per image over those of {kept.batch_size} images of "
        f"{kept.side}x{kept.side} with {kept.diffusion}, the column of ones: medians "
        f"over {settings['repeats']} interleaved repeats, and quartiles. A U-Net of "
        f"width {settings['width']}, {settings['n_steps']} steps for a sample or a "
        f"likelihood, whatever the case, on {record['device']['kind']}. "
        "`benchmarks/cost.py` says what each is.",
        "",
        f"{versions}.",
    ]
    changes = {"n_vars": "Variables", "side": "Side", "batch_size": "Images at once"}
    for name, heading in changes.items():
        others = {field.name for field in dataclasses.fields(Case)}
        others -= {"diffusion" if name == "n_vars" else name}
        found = {
            (row["task"], row["score"], row[name]): row
            for row in rows
            if all(row[other] == getattr(kept, other) for other in others)
        }
        values = sorted({value for *_, value in found})
        lines += ["", f"## {heading}", ""]
        head = ["task", "score", *map(str, values)]
        lines += [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head))]
        for task, score in dict.fromkeys((row["task"], row["score"]) for row in rows):
            cells = [_cell(found[task, score, value]) for value in values]
            lines.append(f"| {' | '.join([task, score, *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    return f"{row['cost_of_an_image']:.2f} ({low:.2f} to {high:.2f})"


def main(settings: Settings) -> None:
    if settings.from_results is not None:
        text = render(json.loads(settings.from_results.read_text()))
        print(text)
        if settings.table is not None:
            settings.table.write_text(text)
        return
    if settings.quick:
        settings = dataclasses.replace(
            settings,
            diffusions=("VPSDE", "CLD"),
            sides=(8,),
            batch_sizes=(2,),
            width=8,
            n_steps=2,
            repeats=2,
        )
    facts = common.facts(settings.seed)
    common.show(facts)
    print(
        f"{'task':11}{'score':10}{'diffusion':10}{'K':>2}{'side':>5}{'batch':>6}"
        f"{'images/s':>10}{'cost':>7}  quartiles"
    )
    results = []
    for task in ("bound", "sampling", "likelihood"):
        for score in ("denoiser", "free"):
            for row in run(task, score, settings):
                results.append(row)
                low, high = row["quartiles"]
                print(
                    f"{task:11}{score:10}{row['diffusion']:10}{row['n_vars']:2}"
                    f"{row['side']:5}{row['batch_size']:6}"
                    f"{row['images_per_second']:10.3g}{row['cost_of_an_image']:7.2f}"
                    f"  {low:.2f} to {high:.2f}",
                    flush=True,
                )
            common.write(settings, facts, results=results)
            if settings.table is not None:
                record = common.record(settings, facts, results=results)
                settings.table.write_text(render(record))


if __name__ == "__main__":
    main(tyro.cli(Settings))
