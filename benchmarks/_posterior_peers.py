"""Posteriors learned by other libraries, each in its own environment."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


_PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(_PEERS))

import environments  # noqa: E402


# GenSBI's own peak learning rate and eqmdm's.
RATES = (1e-4, 1e-3)
METHODS = ("EDM", "flow matching")


def gensbi(
    arrays: dict[str, np.ndarray], settings: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts that `peers/posterior_gensbi.py` writes.

    **Arguments:**

    - `arrays`: its input, standardised.
    - `settings`: the method, and the steps, batch size, width and seed of eqmdm.
    """
    given = json.dumps(settings | {"rates": RATES})
    # Only eqmdm's networks are loaded there, from this checkout.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as directory:
        source, target = (str(Path(directory) / f"{n}.npz") for n in ("in", "out"))
        np.savez(source, settings=given, **arrays)  # pyright: ignore[reportArgumentType]
        subprocess.run(
            [
                environments.make("gensbi", {}),
                str(_PEERS / "posterior_gensbi.py"),
                *(source, target),
            ],
            check=True,
            env=environment,
        )
        with np.load(target) as found:
            parts = dict(found)
    return parts, json.loads(str(parts.pop("facts")))


def notes(names: tuple[str, ...], found: dict[str, Any]) -> list[str]:
    """What a table says about the peers."""
    rows = {name: row for name, row in found.items() if "learning_rate" in row}
    if "gensbi" not in names or not rows:
        return []
    version = next(iter(rows.values()))["versions"]["gensbi"]
    rates = [
        f"{row['learning_rate']:g} for {name.replace(', GenSBI', '')}"
        for name, row in rows.items()
    ]
    return [
        "",
        f"GenSBI {version} trains the same network on the same standardised "
        "simulations, with as many steps of the same batch size, and with its own "
        "optimiser, schedule and average, without early stopping. It was trained with "
        f"its default of the largest learning rate, {RATES[0]:g}, and with that of "
        f"eqmdm, {RATES[1]:g}; shown is the one with the least loss on held-out "
        f"simulations: {', '.join(rates)}. Samplers are each library's defaults. The "
        "EDM method has no log-density. GenSBI takes no missing entries, and so no "
        "varying number of observations (`linear, several`). Processor seconds are "
        "those of one training with its compilation.",
    ]
