"""The records of the training program, without a model."""

import json
import math

from eqmdm.cli.files import error_as_text
from eqmdm.cli.train.records import Records, report


def test_records_after_the_last_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path, up_to=0)
    for step in (2, 4, 6):
        records.add({"step": step, "nats": step / 2})
    with path.open("a") as file:
        file.write('{"step": 8, "na')
    assert [r["step"] for r in Records(path, up_to=4).read()] == [2, 4]


def test_error_of_one_example_is_in_words_and_null_in_files(tmp_path, capsys):
    summary = {"total": (-2.0, math.nan), "bits_per_dim": (1.5, math.nan)}
    report(tmp_path / "bound.json", summary, {"step": 3, "examples": 1})
    shown = capsys.readouterr().out
    assert shown.count("not known for one example") == 2 and "nan" not in shown
    assert "bits_per_dim" in shown and "bits/dim" in shown
    terms = json.loads((tmp_path / "bound.json").read_text())["terms"]
    assert terms["bits_per_dim"] == {
        "mean": 1.5,
        "standard_error": None,
        "unit": "bits/dim",
    }
    assert error_as_text(0.25, 9) == "0.2500"
