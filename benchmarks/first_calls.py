"""How long does each first call take in a fresh process, and what does it compile?

    python benchmarks/first_calls.py --before CHECKOUT --output FILE --table FILE

Each case runs in two processes that share a compilation cache, which is empty at first:
a cold one, and a second that may load what the first has compiled. Measures the
processor time of the call alone, over all threads, and the programs that it compiles;
imports and the arguments of the call come before. The references run next to it: the
five libraries that `eqmdm` imports, and the same bare network (a U-Net for 8x8 images,
of width 24 and two levels) in a call, in a gradient step of 32 examples, and in
hand-written loops with as many evaluations as the solves take.

Prints medians over the repeats; a ratio is the median of the ratios of neighbours.

`--before` also measures another checkout, with the cases of
`first_calls_cases/api_before.py`, for functions that take a score and a diffusion.
Parts that are not measured are kept from the existing output.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro


_HERE = Path(__file__).parents[1]
_WORKER = Path(__file__).parent / "first_calls_cases" / "worker.py"
_PACKAGES = ("jax", "jaxlib", "equinox", "diffrax", "lineax", "optax")


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: its name in the table, its reference and its limits."""

    title: str
    reference: str | None
    bar: str


_CASES = {
    "import_eqmdm": Case("`import eqmdm`", "import_references", "at most 1.15"),
    "cld_interval": Case(
        "`CLD(interval=LogSNRInterval(-9, 13.3))`", None, "0 programs, under 0.1 s"
    ),
    "unet": Case("U-Net of 8x8", None, "1 program at most, under 0.5 s"),
    "create": Case("`TrainState.create`", None, "1 program at most"),
    "elbo": Case("`elbo`", "network_call", "1 program, at most 1.3"),
    "train_step": Case("`train_step`, CLD", "gradient_step", "at most 1.25"),
    "train_step_learned": Case("`train_step`, learned", "gradient_step", "at most 1.6"),
    "sample": Case("`sample`, CLD, SEA", "sampling_loop", "at most 1.5"),
    "sample_denoiser": Case(
        "`sample`, denoiser, multistep", "sampling_loop_denoiser", "at most 1.5"
    ),
    "log_likelihood": Case("`log_likelihood`, CLD", "flow_loop", "at most 1.5"),
    "log_likelihood_denoiser": Case(
        "`log_likelihood`, denoiser", "flow_loop_denoiser", "at most 1.5"
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures first calls, cold and from the compilation cache."""

    before: Path | None = None
    """Another checkout to measure, in which functions take a score first."""
    after: bool = True
    """Whether to measure this checkout."""
    cases: tuple[str, ...] = tuple(_CASES)
    """The calls to measure."""
    repeats: int = 3
    """Pairs of a cold and a warm process for each call."""
    output: Path | None = None
    """A JSON file for the results."""
    table: Path | None = None
    """A Markdown file for the table."""
    quick: bool = False
    """Measure only imports, the network and the bound, once."""


# --- Measuring -----------------------------------------------------------------------


def environment(checkout: Path, cache: Path) -> dict[str, str]:
    """The environment of this process without JAX's settings, except the platform."""
    ours = ("JAX_", "XLA_", "EQX_", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    if "JAX_PLATFORMS" in os.environ:
        kept["JAX_PLATFORMS"] = os.environ["JAX_PLATFORMS"]
    return kept | {
        "PYTHONPATH": str(checkout),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        # Cache every program, however quickly it compiles.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run(case: str, api: str, checkout: Path, cache: Path, n: int = 0) -> dict:
    """The result of one call in a new process."""
    arguments = [case, api, str(n)]
    done = subprocess.run(
        [sys.executable, str(_WORKER), *arguments],
        env=environment(checkout, cache),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_twice(case: str, api: str, checkout: Path, n: int = 0) -> dict[str, Any]:
    """The results of a call with an empty compilation cache, and with a warm one."""
    with tempfile.TemporaryDirectory() as directory:
        cold, warm = (run(case, api, checkout, Path(directory), n) for _ in range(2))
    return {"cold": cold, "warm": warm}


def measure(
    settings: Settings, api: str, checkout: Path
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The name and the repeats of each case, each repeat with its reference."""
    # Not measured: the first import compiles the package to bytecode, as pip would.
    run_twice("import_eqmdm", api, checkout)
    for name in settings.cases:
        reference = _CASES[name].reference
        rows = []
        for _ in range(settings.repeats):
            row = {"call": run_twice(name, api, checkout)}
            if reference is not None:
                n = row["call"]["cold"].get("n_evaluations", 0)
                row["reference"] = run_twice(reference, api, checkout, n)
            rows.append(row)
        print(api, name, summary(rows), flush=True)
        yield name, rows


# --- Reporting -----------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The medians of a case."""
    calls = [row["call"] for row in rows]
    cold = [call["cold"]["seconds"] for call in calls]
    last = calls[-1]
    numbers = {
        "seconds": statistics.median(cold),
        "programs": last["cold"]["programs"],
        "seconds_warm": statistics.median(call["warm"]["seconds"] for call in calls),
        "programs_warm": last["warm"]["programs"],
        "from_cache": last["warm"]["from_cache"],
    }
    if "reference" in rows[0]:
        numbers["ratio"] = statistics.median(
            row["call"]["cold"]["seconds"] / row["reference"]["cold"]["seconds"]
            for row in rows
        )
    return numbers


_HEADER = (
    "| call | bar "
    "| before: s | programs | of reference | second process: s, from cache "
    "| after: s | programs | of reference | second process: s, from cache |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


def table(record: dict[str, Any]) -> str:
    lines = [_HEADER]
    for name, case in _CASES.items():
        cells = [case.title, case.bar]
        for part in ("before", "after"):
            rows = record.get(part, {}).get("cases", {}).get(name)
            cells += ["", "", "", ""] if rows is None else _cells(summary(rows))
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _cells(numbers: dict[str, float]) -> list[str]:
    ratio = f"{numbers['ratio']:.2f}" if "ratio" in numbers else ""
    warm = (
        f"{numbers['seconds_warm']:.2f}, {numbers['from_cache']} of "
        f"{numbers['programs_warm']}"
    )
    return [f"{numbers['seconds']:.2f}", str(numbers["programs"]), ratio, warm]


def facts(checkout: Path) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": os.environ.get("JAX_PLATFORMS", "default"),
        "n_cores": os.cpu_count(),
    }


def main(settings: Settings) -> None:
    if settings.quick:
        cases = ("import_eqmdm", "unet", "elbo")
        settings = dataclasses.replace(settings, cases=cases, repeats=1)
    record: dict[str, Any] = {}
    if settings.output is not None and settings.output.exists():
        record = json.loads(settings.output.read_text())
    parts = {"after": (_HERE, "api_after")} if settings.after else {}
    if settings.before is not None:
        parts["before"] = settings.before.absolute(), "api_before"
    for part, (checkout, api) in parts.items():
        cases = record.get(part, {}).get("cases", {})
        record[part] = facts(checkout) | {"cases": cases}
        for name, rows in measure(settings, api, checkout):
            cases[name] = rows
            # Written after each case, so that an interruption loses only one.
            if settings.output is not None:
                settings.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    if settings.table is not None:
        settings.table.write_text(table(record))


if __name__ == "__main__":
    main(tyro.cli(Settings))
