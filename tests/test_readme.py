"""The examples of the README that need little training."""

import math
import re
from pathlib import Path

import jax.random as jr
import pytest

import eqmdm


SECTIONS = (
    "A new diffusion",
    "Observations",
    "Matrices by coordinate",
    "Other processes",
    "Diffrax terms",
    "Samples and likelihoods",
)


@pytest.mark.slow
def test_examples_of_the_readme_run_and_give_the_numbers_in_it(capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    names = {}
    for section in SECTIONS:
        part = text.split(f"## {section}\n")[1].split("\n## ")[0]
        for block in re.findall(r"```python\n(.*?)```", part, re.DOTALL):
            exec(block, names)
    assert "log_likelihood=" in capsys.readouterr().out
    log_normal = lambda variance: (
        -0.5 * (math.log(2 * math.pi * variance) + 1 / variance)
    )
    # Four ones observed with a noise of 0.1, and eight without any.
    denoiser = names["denoiser"]
    model = eqmdm.DenoiserModel(denoiser, names["diffusion"])
    evidence = eqmdm.log_evidence(model, names["observation"], key=jr.key(0))
    expected = {"-5.68 nats": 4 * log_normal(1.01), "-11.35 nats": 8 * log_normal(1.0)}
    for shown, value in expected.items():
        assert shown in text and f"{value:.2f} nats" == shown
    # The diffusion ends at a low log-SNR, where the prior stands in for the law.
    for found, value in zip(
        (evidence, names["likelihood"]), expected.values(), strict=True
    ):
        assert abs(float(found.log_likelihood) - value) < 1e-2
