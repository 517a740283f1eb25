"""Run `make test` at both ends of the range of interpreters, and print a table.

    python tests/both_ends.py [python3.11 python3.13 ...]

Each interpreter gets an environment of its own in a fresh clone of what is committed,
as a newcomer would have it. The exit status is 1 if any of them has a failure.
"""

import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path


ROOT = Path(__file__).parents[1]
_DEFAULT = ["python3.11", "python3.13"]
_SHOWN = ["jax", "equinox", "diffrax", "optax", "lineax"]
_COUNTS = ["passed", "skipped", "failed", "error"]


def main(interpreters: list[str]) -> int:
    rows, worst = [], 0
    for interpreter in interpreters:
        with tempfile.TemporaryDirectory() as directory:
            clone = Path(directory) / "eqmdm"
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
            start = time.monotonic()
            done = subprocess.run(
                ["make", "test", f"PYTHON={interpreter}"],
                cwd=clone,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            minutes = (time.monotonic() - start) / 60
            if done.returncode:
                worst = 1
                print(done.stdout[-4000:], file=sys.stderr)
            counts = counts_of(done.stdout)
            packages = list((clone / ".venv" / "lib").glob("python*/site-packages"))
            found = {d.name: d.version for d in distributions(path=map(str, packages))}
            rows.append(
                # Without an environment, as where there is no such interpreter.
                [packages[0].parent.name if packages else interpreter]
                + [found.get(name, "none") for name in _SHOWN]
                + [str(counts[name]) for name in _COUNTS]
                + [f"{minutes:.0f}"]
            )
    print(as_table(["interpreter", *_SHOWN, *_COUNTS, "minutes"], rows))
    return worst


def counts_of(output: str) -> dict[str, int]:
    """The counts in pytest's last line, with zero for missing ones."""
    summaries = re.findall(
        r"^.*\b\d+ (?:passed|failed|errors?)\b.* in .*$", output, re.M
    )
    last = summaries[-1] if summaries else ""
    counts = dict.fromkeys(_COUNTS, 0)
    for number, name in re.findall(r"(\d+) (passed|skipped|failed|error)", last):
        counts[name] = int(number)
    return counts


def as_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or _DEFAULT))
