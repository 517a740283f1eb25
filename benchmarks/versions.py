"""How do two checkouts differ in compilation of the first step, and in step time?

    git worktree add DIRECTORY REVISION
    python benchmarks/versions.py --before DIRECTORY --output FILE

Runs `train.py` of both, with a U-Net on the bundled digits and an MLP on points, in
turn: one step with an empty cache, one step in a second process with the cache of the
first, and many steps. Reports processor time for the first two, which other programs
disturb less than wall time, and wall time for a step, from the records of the run after
its first window. Without `--before` it compares this checkout with itself, which shows
the noise.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import _common as common
import tyro


_HERE = Path(__file__).parents[1]
_CASES = {
    "VPSDE, denoiser": ["--diffusion=vpsde"],
    "CLD, denoiser": ["--diffusion=cld"],
    "CLD, free": ["--diffusion=cld", "--score=free"],
    "learned, K = 2, free": ["--diffusion=learned", "--score=free"],
    "MLP, CLD, free": ["--dataset=rings", "--diffusion=cld", "--score=free"],
}
_NOTHING_ELSE = "--n-samples=0 --test-examples=0 --validation-examples=1".split()
_MEASURES = {
    "cold": "seconds of processor, one step, nothing kept",
    "warm": "seconds of processor, one step, from what was kept",
    "step": "milliseconds a step",
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Compares training in two checkouts."""

    before: Path | None = None
    """The other checkout; by default this one."""
    repeats: int = 3
    """Repeats of each measurement, in turn; medians are shown."""
    steps: int = 50
    """Steps in each of two timed windows, after an untimed one."""
    quick: bool = False
    """Run one case, once."""


def train(
    checkout: Path, case: list[str], steps: int, cache: str
) -> tuple[float, list[float]]:
    """The processor seconds of a training process, and its steps per second between
    successive records of its metrics."""
    environment = os.environ | {
        # Use the library of that checkout instead of an installed one.
        "PYTHONPATH": str(checkout),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with tempfile.TemporaryDirectory() as directory:
        program = [sys.executable, str(checkout / "scripts" / "train.py")]
        options = [f"--steps={steps}", f"--run-dir={directory}/run"]
        options.append(f"--log-every={max(1, steps // 3)}")
        if not any(option.startswith("--dataset") for option in case):
            options.append("--dataset=digits")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*program, *options, *case, *_NOTHING_ELSE],
            env=environment,
            check=True,
            capture_output=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    rates = [r["steps_per_second"] for r in records if "steps_per_second" in r]
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, rates


def measure(checkout: Path, case: list[str], steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        cold, _ = train(checkout, case, 1, cache)
        warm, _ = train(checkout, case, 1, cache)
        # The first window includes compilation.
        _, (_, *rates) = train(checkout, case, 3 * steps, cache)
    return {"cold": cold, "warm": warm, "step": 1e3 / statistics.median(rates)}


def main(settings: Settings) -> None:
    cases, repeats, steps = _CASES, settings.repeats, settings.steps
    if settings.quick:
        cases, repeats, steps = dict([next(iter(_CASES.items()))]), 1, 4
    checkouts = {"before": settings.before or _HERE, "after": _HERE}
    print("; ".join(f"{name}: {what}" for name, what in _MEASURES.items()))
    print(f"{'':22}{'':6}{'before':>9}{'after':>9}{'after / before':>16}")
    results = []
    for name, case in cases.items():
        found: dict[str, list[dict[str, float]]] = {which: [] for which in checkouts}
        for _ in range(repeats):
            for which, checkout in checkouts.items():
                found[which].append(measure(checkout.resolve(), case, steps))
        row: dict[str, object] = {"case": name, "every": found}
        for measured in _MEASURES:
            pairs = [
                (b[measured], a[measured])
                for b, a in zip(found["before"], found["after"], strict=True)
            ]
            before, after = (
                statistics.median(values) for values in zip(*pairs, strict=True)
            )
            ratio = statistics.median(a / b for b, a in pairs)
            row[measured] = {"before": before, "after": after, "ratio": ratio}
            print(
                f"{name if measured == 'cold' else '':22}{measured:6}"
                f"{before:9.2f}{after:9.2f}{ratio:16.2f}",
                flush=True,
            )
        results.append(row)
        write(settings, checkouts, results)


def write(settings: Settings, checkouts: dict[str, Path], results: list) -> None:
    """Write the measurements so far to the output."""
    if settings.output is None:
        return
    revisions = {
        which: subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        for which, checkout in checkouts.items()
    }
    common.write(settings, common.facts(), revisions=revisions, results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
