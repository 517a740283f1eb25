"""Tests that SCALING.md matches its program, and that the program counts correctly."""

import json
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def importable_benchmarks():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def program(importable_benchmarks):
    import scaling

    return scaling


def test_document_has_the_tables_of_the_counts(program):
    text = program.DOCUMENT.read_text()
    parts = program.tables(json.loads(program.COUNTS.read_text()))
    assert program.filled(text, parts) == text, (
        "run python benchmarks/scaling.py --write"
    )


def test_document_has_the_table_of_the_devices(program):
    import devices

    text = program.DOCUMENT.read_text()
    stored = json.loads((BENCHMARKS / "results" / "devices_cpu.json").read_text())
    rows = stored["results"]
    assert program.filled(text, {"devices": devices.table(rows)}) == text
    # Sums in another order, in float64.
    assert max(max(row["differences"].values()) for row in rows) < 1e-12


def test_parameters_are_those_of_the_networks(program):
    counted = json.loads(program.COUNTS.read_text())["networks"]
    found = program.count(128)
    stored = program.Counts(**counted["Ho et al.'s"])
    assert found.n_parameters == stored.n_parameters == 35_746_307
    # How XLA counts what is not a product differs from version to version.
    assert found.training_flops == pytest.approx(stored.training_flops, rel=0.05)


def test_traffic_is_that_of_a_ring_in_each_node_and_between_them(program):
    # In a ring of n each sends n - 1 of n parts; hand-counted for two nodes of eight.
    assert program.traffic(800, 1, 2) == (0, 0)
    assert program.traffic(800, 8, 1) == (700, 0)
    assert program.traffic(800, 16, 2) == (1400, 100)
    # Many nodes: each moves its own eighth.
    assert program.traffic(800, 8 * 10**6, 1)[1] == pytest.approx(100, rel=1e-5)


def test_whole_parameters_are_moved_as_one_gradient(program):
    moved = json.loads(program.COUNTS.read_text())["moved_over_parameters"]
    # Beside the gradient, the sums that are logged.
    assert moved["whole"]["all-reduce"] == pytest.approx(1, abs=1e-3)
    assert sum(moved["whole"].values()) < 1.01


def test_shares_are_gathered_twice_and_the_gradient_is_summed_once(program):
    moved = json.loads(program.COUNTS.read_text())["moved_over_parameters"]["in shares"]
    # Small arrays are not divided: little of all parameters.
    assert moved["all-gather"] == pytest.approx(2, abs=0.02)
    assert moved["all-reduce"] == pytest.approx(1, abs=1e-3)
    # No activation is moved.
    assert sum(moved.values()) < 3.01


def test_collectives_are_found_in_a_program(program):
    text = """
  %a = f32[8,4]{1,0} all-reduce(f32[8,4]{1,0} %x), to_apply=%add
  %b = (f32[2]{0}, bf16[3,2]{1,0}) all-reduce-start(%y, %z)
  %c = (f32[2]{0}, bf16[3,2]{1,0}) all-reduce-done(%b)
  %d = s32[] add(s32[] %i, s32[] %j)
  %e = u8[16]{0} all-gather(u8[2]{0} %w), dimensions={0}
"""
    assert program.collectives(text) == {"all-reduce": 128 + 8 + 12, "all-gather": 16}
