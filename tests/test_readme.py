"""The example of the README that needs no training."""

import math
import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_example_of_the_readme_runs_and_gives_the_number_in_it(capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.split("## A new diffusion\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(block, names)
    assert "log_likelihood=" in capsys.readouterr().out
    truth = -4 * (math.log(2 * math.pi) + 1)  # of eight ones
    assert f"log p(x) is {truth:.2f} nats" in section
    # The diffusion ends at a low log-SNR, where the prior stands in for the law.
    ends = 1e-2
    assert abs(float(names["likelihood"].log_likelihood) - truth) < ends
    bound = names["bound"]
    assert abs(float(bound.total) - truth) < 5 * float(bound.standard_error) + ends
    # Of 8,000 normal draws.
    assert abs(float(names["x"].std()) - 1) < 5 / (2 * names["x"].size) ** 0.5 + ends
