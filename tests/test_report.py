"""The page of a run: its numbers are those of the files, and it is nothing but a page,
whatever the files hold."""

import base64
import html.parser
import io
import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from script_runs import POINTS, copy_run, single_precision

from eqmdm.cli.parsing import parse
from eqmdm.cli.report import chart, contents, program
from eqmdm.cli.report.options import ReportOptions


TERMS = {
    "reconstruction": {"mean": 10.5, "standard_error": 0.25, "unit": "nats"},
    "total": {"mean": -3.0, "standard_error": None, "unit": "nats"},
    "nats": {"mean": 3.0, "standard_error": 0.125, "unit": "nats"},
}
# Nothing that runs, loads or sends anything.
TAGS = "html head meta title style body main header h1 h2 h3 p section div dl dt dd "
TAGS += "small figure figcaption ul li span svg path text clippath rect g circle img "
TAGS += "details summary table thead tbody tr th td a"


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with all files that a page is made from."""
    with single_precision():
        run_dir = copy_run(tmp_path_factory.mktemp("report") / "the run", *POINTS)
    records = []
    for step in range(10, 410, 10):
        records.append({"step": step, "nats": 100 / step, "grad_norm": 1.0})
    records += [{"step": s, "validation": {"nats": [s / 100, 0.5]}} for s in (200, 400)]
    lines = [json.dumps(record) for record in records]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    bound = {"step": 400, "examples": 64, "draws": 8, "terms": TERMS}
    (run_dir / "test_bound.json").write_text(json.dumps(bound))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(run_dir / "samples.png")
    return run_dir, pixels


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def _page(run_dir):
    return program.write(run_dir).read_text(encoding="utf-8")


def _check_is_only_a_page(text):
    page = Page(text)
    assert set(page.tags) <= set(TAGS.split()), set(page.tags) - set(TAGS.split())
    for _, name, value in page.attributes:
        assert not name.startswith("on") and name not in ("srcset", "style", "srcdoc")
        if name in ("src", "href"):
            assert re.match(r"data:image/(png|svg\+xml);base64,|samples\.\w+$", value)
    (policy,) = [v for _, n, v in page.attributes if n == "content" and "src" in v]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"url\((?!#)|@import", text)
    return page


def test_page_has_the_numbers_of_the_files(finished):
    run_dir, pixels = finished
    text = _page(run_dir)
    page = _check_is_only_a_page(text)
    shown = " ".join(" ".join(page.texts).split())
    assert "reconstruction 10.5000 0.2500 nats" in shown
    assert "total -3.0000 not known nats" in shown
    assert "test bound 3.0000 ± 0.1250 nats, 64 examples" in shown
    assert "best validation 2.0000 ± 0.5000 at step 200" in shown
    assert "last 0.2500 at step 400" in shown and "last 4.0000 ± 0.5000" in shown
    record = json.loads((run_dir / "options.json").read_text())
    for name, value in record["versions"].items():
        assert f"{name} {value}" in shown
    assert record["device"]["machine"] in shown and "log_snr_range none" in shown
    assert "t_range 0.001 1.0" in shown
    (image,) = [v for tag, name, v in page.attributes if (tag, name) == ("img", "src")]
    content = base64.b64decode(image.partition(",")[2])
    np.testing.assert_array_equal(Image.open(io.BytesIO(content)), pixels)


def test_page_is_written_again_with_the_same_content(finished, capsys):
    run_dir, _ = finished
    first = _page(run_dir)
    program.run(parse(ReportOptions, [str(run_dir)]))
    assert capsys.readouterr().out == f"written: {run_dir / 'report.html'}\n"
    assert (run_dir / "report.html").read_text(encoding="utf-8") == first


def test_run_without_results_has_a_page_of_its_options(run_dir):
    for name in ("metrics.jsonl", "test_bound.json", "samples.png"):
        (run_dir / name).unlink()
    page = _check_is_only_a_page(_page(run_dir))
    assert "svg" not in page.tags and "table" not in page.tags
    assert "Options" in page.texts and "Test bound" not in page.texts


@pytest.mark.parametrize("n_classes", [3, 21, 0, "3", None])
def test_columns_of_samples_are_named_for_a_model_of_classes(n_classes, run_dir):
    path = run_dir / "options.json"
    record = json.loads(path.read_text())
    record["options"]["data"]["condition"] = {"n_classes": n_classes}
    path.write_text(json.dumps(record))
    text = _page(run_dir)
    _check_is_only_a_page(text)
    # More classes than the picture has columns are not in columns.
    assert ("Each column is a class: 0, 1, 2." in text) == (n_classes == 3)
    assert ("Each column" in text) == (n_classes == 3)
    names = ["ant", "<b>", "cat"]
    record["options"]["data"]["condition"]["names"] = names
    path.write_text(json.dumps(record))
    text = _page(run_dir)
    _check_is_only_a_page(text)
    assert ("Each column is a class: ant, &lt;b&gt;, cat." in text) == (n_classes == 3)


def test_picture_that_a_page_cannot_show_is_named(run_dir):
    (run_dir / "samples.png").rename(run_dir / "samples.pdf")
    page = _check_is_only_a_page(_page(run_dir))
    assert ("a", "href", "samples.pdf") in page.attributes and "img" not in page.tags


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_directory_that_is_no_run_is_one_line(text, tmp_path, capsys):
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        program.run(parse(ReportOptions, [str(tmp_path)]))
    (line,) = str(stopped.value.code).splitlines()
    assert line.startswith("error: ") and "options.json" in line
    assert capsys.readouterr().out == "" and not (tmp_path / "report.html").exists()


# --- Hostile files -------------------------------------------------------------------

ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)><style>*{}</style>"
BROKEN = [ATTACK, [], {}, 1e999, None, True, -(10**400), [[ATTACK]], {ATTACK: ATTACK}]


def test_text_of_files_is_only_text(run_dir):
    path = run_dir / "options.json"
    record = json.loads(path.read_text())
    record["options"] = {name: ATTACK for name in record["options"]} | {ATTACK: ATTACK}
    record |= {ATTACK: [ATTACK], "versions": {ATTACK: ATTACK}, "device": {"a": ATTACK}}
    record["a half"] = "\ud800"
    path.write_text(json.dumps(record))
    entry = {"mean": 1.0, "standard_error": 1.0, "unit": ATTACK}
    bound = {"terms": {ATTACK: entry}, "examples": ATTACK, ATTACK: ATTACK}
    (run_dir / "test_bound.json").write_text(json.dumps(bound))
    renamed = run_dir.rename(run_dir.with_name(ATTACK.replace("/", "")))
    page = _check_is_only_a_page(_page(renamed))
    assert any(ATTACK in text for text in page.texts)


@pytest.mark.parametrize("value", BROKEN, ids=range(len(BROKEN)))
def test_values_of_another_form_are_left_out(value, run_dir):
    path = run_dir / "options.json"
    record = json.loads(path.read_text())
    record["options"] = dict.fromkeys(record["options"], value)
    path.write_text(json.dumps(record | {"versions": value, "device": value}))
    records = [value, {"step": value, "nats": 1.0}, {"step": 3, "nats": value}]
    records += [{"step": 4, "validation": value}]
    records += [{"step": 5, "validation": {"nats": value}}]
    records += [{"step": 6, "validation": {"nats": [1.0, value]}}]
    records += [{"step": 7, "validation": {"nats": [value]}}]
    lines = [json.dumps(record) for record in records] + ["{", "[" * 100_000]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines))
    found = contents.read(run_dir)
    assert [point.step for point in found.curves["validation"]] == [6]
    assert math.isnan(found.curves["validation"][0].error)
    for terms in (value, {"total": value}, {"total": {"mean": value}}):
        bound = {"terms": terms, "examples": value}
        (run_dir / "test_bound.json").write_text(json.dumps(bound))
        _check_is_only_a_page(_page(run_dir))


@pytest.mark.parametrize(
    "name, content",
    [
        ("samples.png", b"\x89PNG\r\n\x1a\n" + ATTACK.encode()),
        ("samples.png", ATTACK.encode()),
        ("samples.svg", ATTACK.encode()),
        ("samples.svg", b""),
    ],
)
def test_picture_that_is_none_is_not_shown(name, content, run_dir):
    (run_dir / "samples.png").unlink()
    (run_dir / name).write_bytes(content)
    assert "img" not in _check_is_only_a_page(_page(run_dir)).tags


def test_picture_of_too_many_pixels_is_not_opened(run_dir):
    # A gigapixel of one colour is a file of a few kilobytes.
    Image.new("1", (32768, 32768)).save(run_dir / "samples.png")
    assert "img" not in _check_is_only_a_page(_page(run_dir)).tags


# --- Charts --------------------------------------------------------------------------


def _places(path):
    return np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path), float)


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_points_and_bars_are_where_the_axes_say(kind):
    values = {10: 3.0, 20: 2.0, 35: 2.5, 50: 1.25}
    points = [contents.Point(s, v, 0.25) for s, v in values.items()]
    shown = chart.chart([chart.Line("validation", "bound", points)], "bound")
    figures = ElementTree.fromstring(shown).findall("svg")
    (svg,) = [figure for figure in figures if figure.get("class") == kind]
    ticks = {"end": {}, "mid": {}}
    for text in svg.iter("text"):
        if re.fullmatch(r"-?[\d.]+", text.text):
            ticks[text.get("class")][float(text.text)] = text
    # The scale of each axis, from two of its labels.
    (v0, a), *_, (v1, b) = ticks["end"].items()
    # The baseline of a label is 4 pixels below its tick.
    y0, y1 = float(a.get("y")) - 4, float(b.get("y")) - 4
    (s0, a), *_, (s1, b) = ticks["mid"].items()
    x0, x1 = float(a.get("x")), float(b.get("x"))
    (line,) = [p for p in svg.iter("path") if p.get("class") == "line"]
    for (x, y), (step, value) in zip(
        _places(line.get("d")), values.items(), strict=True
    ):
        # Coordinates have one digit after the point, and so have those of the labels.
        assert x == pytest.approx(x0 + (step - s0) / (s1 - s0) * (x1 - x0), abs=0.3)
        assert y == pytest.approx(y0 + (value - v0) / (v1 - v0) * (y1 - y0), abs=0.3)
    (bars,) = [p for p in svg.iter("path") if p.get("class") == "bar"]
    lengths = re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", bars.get("d"))
    expected = 0.5 * abs(y1 - y0) / (v1 - v0)
    for low, high in lengths:
        assert float(low) - float(high) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(
    "low, high", [(0.0, 1.0), (-3.7, 12.0), (1e6, 1e6 + 3), (2e-9, 3e-9)]
)
def test_ticks_are_round_and_within_the_axis(low, high):
    found = chart.ticks(low, high, 5)
    assert 2 <= len(found) <= 6 and all(low <= tick <= high for tick in found)
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step * (1 + 1e-9)))
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6


def test_long_curves_are_averaged_and_equal_values_drawn():
    points = [contents.Point(step, float(step)) for step in range(1, 10_001)]
    shown = chart.chart([chart.Line("training", "loss", points)], "loss")
    (line, _) = re.findall(r'class="line" d="([^"]*)"', shown)
    assert 150 <= len(_places(line)) <= 300 and len(shown) < 60_000
    flat = [contents.Point(step, 2.0) for step in (1, 2)]
    assert "<svg" in chart.chart([chart.Line("training", "loss", flat)], "loss")
    assert "<svg" in chart.chart([chart.Line("training", "loss", flat[:1])], "loss")
    assert chart.chart([chart.Line("training", "loss", [])], "loss") == ""
