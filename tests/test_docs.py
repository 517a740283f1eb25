"""Tests of the documentation: its code, its commands, its links and its builder."""

import ast
import base64
import io
import os
import posixpath
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import eqmdm
from eqmdm.cli.entry import PROGRAMS
from eqmdm.cli.parsing import parse


ROOT = Path(__file__).parents[1]
# The builder is no part of the package.
sys.path.insert(0, str(ROOT / "docs"))

from toolchain.cache import executed  # noqa: E402
from toolchain.cells import Cell, read_cells  # noqa: E402
from toolchain.checks import faults  # noqa: E402
from toolchain.execution import execute, page  # noqa: E402
from toolchain.notebooks import notebook  # noqa: E402
from toolchain.programs import options_of, program_pages  # noqa: E402
from toolchain.quick import short_form  # noqa: E402
from toolchain.reference import public_names, reference_pages  # noqa: E402
from toolchain.site import (  # noqa: E402
    DOCS,
    BuildError,
    all_pages,
    check_navigation,
    sources,
)


SOURCES = {source.relative_to(DOCS).as_posix(): source for source in sources()}
every_source = pytest.mark.parametrize("name", SOURCES)
WITH_CODE = [
    name
    for name, source in SOURCES.items()
    if any(cell.is_code for cell in read_cells(source))
]


# --- The pages -----------------------------------------------------------------------


def test_code_of_the_pages_runs_in_its_short_form():
    # In a process of its own, because pages have neither the settings of JAX nor the
    # type checks of these tests.
    finished = subprocess.run(
        [sys.executable, "-m", "toolchain.quick", *WITH_CODE],
        env=os.environ | {"PYTHONPATH": str(DOCS), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert not finished.returncode, finished.stderr
    assert finished.stdout.count("\n") == len(WITH_CODE)


SHORTENED = {
    "fit(x, steps=1000, batch_size=4000)": "fit(x, steps=20, batch_size=100)",
    "fit(x, steps=7, rate=1000)": "fit(x, steps=7, rate=100)",
    "nn.MLP(2, depth=3)": "nn.MLP(2, depth=1)",
    "for n in (5, 10, 20):\n    f(n)": "for n in (5,):\n    f(n)",
    "for n in (5, 10):\n    f(n)": "for n in (5, 10):\n    f(n)",
    "for f in (a, b, c):\n    f()": "for f in (a, b, c):\n    f()",
    "for s in ('a', 'b', 'c'):\n    f(s)": "for s in ('a', 'b', 'c'):\n    f(s)",
    "std, n = (3.0, 2000)": "std, n = (3.0, 100)",
    "split(key, 2000)": "split(key, 100)",
    "x[:20000]": "x[:100]",
    "GreyLevels(256)": "GreyLevels(256)",
    "sample(x, n_draws=32)": "sample(x, n_draws=4)",
    "solve(f, max_steps=4096)": "solve(f, max_steps=4096)",
    "eqmdm.Simulation(800)": "eqmdm.Simulation(800)",
    "assert error < 0.1": "pass",
}


@pytest.mark.parametrize("code", SHORTENED)
def test_short_form_has_smaller_counts_and_asserts_nothing(code):
    assert ast.unparse(short_form(ast.parse(code))) == SHORTENED[code]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CODE)
def test_code_of_the_page_runs(name):
    assert (executed(SOURCES[name]) / "results.json").exists()


def _dotted(node):
    """The parts of a name such as `eqmdm.nn.MLP`; none for other expressions."""
    if isinstance(node, ast.Attribute):
        return (*_dotted(node.value), node.attr) if _dotted(node.value) else ()
    return (node.id,) if isinstance(node, ast.Name) else ()


@every_source
def test_names_of_the_library_in_the_page_are_there(name):
    for cell in read_cells(SOURCES[name]):
        if not cell.is_code:
            continue
        for node in ast.walk(ast.parse(cell.text)):
            if _dotted(node)[:1] == ("eqmdm",):
                value = eqmdm
                for part in _dotted(node)[1:]:
                    value = getattr(value, part)


def _commands(text):
    """The commands in the console blocks of a text, as lists of arguments."""
    for block in re.findall(r"^```(?:console|bash)\n(.*?)^```$", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["srun"]:
                words = words[1:]
            if words[:1] == ["eqmdm"]:
                yield words[1:]


def test_commands_are_found():
    text = "```console\n$ eqmdm train --data x  # why\n$ pip install eqmdm\n```\n"
    assert list(_commands(text)) == [["train", "--data", "x"]]


@every_source
def test_commands_of_the_page_are_parsed_by_their_programs(name):
    for cell in read_cells(SOURCES[name]):
        for program, *arguments in _commands("" if cell.is_code else cell.text):
            assert program in PROGRAMS
            # A shell would expand it.
            arguments = [word for word in arguments if word != "$resume"]
            parse(options_of(program), arguments)


@every_source
def test_links_of_the_page_lead_to_files(name):
    pages = all_pages()
    for cell in read_cells(SOURCES[name]):
        if cell.is_code:
            continue
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", cell.text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            assert path in pages or (ROOT / path).is_file(), target


def test_links_and_commands_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    assert len(targets) > 20
    assert [target for target in targets if not (ROOT / target).is_file()] == []
    commands = re.findall(r"^ +python scripts/(\w+)\.py +(.*)$", text, re.M)
    assert len(commands) > 4
    for script, arguments in commands:
        options = options_of(script.replace("_", "-"))
        parse(options, shlex.split(arguments, comments=True))


def test_navigation_has_every_page():
    check_navigation(all_pages())
    with pytest.raises(BuildError, match="differ in other.md"):
        check_navigation(all_pages() | {"other.md"})


def test_reference_has_every_public_name():
    text = "\n".join(reference_pages().values())
    assert len(public_names()) > 150
    assert all(f"::: eqmdm.{name}\n" in text for name in public_names())


@pytest.mark.parametrize("name", PROGRAMS)
def test_page_of_a_program_has_every_option(name):
    page = program_pages()[f"reference/programs/{name}.md"]
    for field in options_of(name).__dataclass_fields__.values():
        option = field.metadata.get("option", field.name).replace("_", "-")
        positional = field.metadata.get("positional")
        shown = field.metadata["metavar"] if positional else f"--{option}"
        assert re.search(rf"\| `{re.escape(shown)}[ `]", page), shown
    assert "None" not in page and "MISSING" not in page


# --- The builder ---------------------------------------------------------------------


PAGE = """# Title

```python
x = 1 + 1
```

Text with {{ x }} and {x}.

```python hidden
y = 3
```

```text
not code
```

```python raises=ValueError
print("before")
raise ValueError("because")
```
"""


def test_cells_of_a_page_have_their_lines_and_marks(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(PAGE)
    code = [cell for cell in read_cells(file) if cell.is_code]
    assert code == [
        Cell("x = 1 + 1\n", 4, True, {}),
        Cell("y = 3\n", 10, True, {"hidden": ""}),
        Cell(
            'print("before")\nraise ValueError("because")\n',
            18,
            True,
            {"raises": "ValueError"},
        ),
    ]


def test_cells_of_a_script_are_those_of_the_same_page(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(
        '# %% [markdown]\n# # Title\n#\n# Text\n\n# %% alt="two words"\nx = 1\n# note\n'
    )
    assert read_cells(file) == [
        Cell("# Title\n\nText\n", 2),
        Cell("x = 1\n# note\n", 7, True, {"alt": "two words"}),
    ]
    assert '"# Title\\n\\nText"' in notebook(file)


def test_unknown_mark_is_named(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("```python hiden\nx = 1\n```\n")
    with pytest.raises(ValueError, match="page.md:2: the marks .* got hiden"):
        read_cells(file)


@pytest.fixture
def executed_page(tmp_path):
    """A function that executes the text of a page and returns the result."""

    def run(text):
        file = tmp_path / "page.md"
        file.write_text(text)
        (tmp_path / "out").mkdir()
        with warnings.catch_warnings(), plt.rc_context():
            execute(file, tmp_path / "out")
        return page(file, tmp_path / "out")

    return run


def test_executed_page_shows_code_results_and_messages(executed_page):
    text = executed_page(PAGE)
    assert "Text with 2 and {x}." in text
    assert "y = 3" not in text and "not code" in text
    assert "```python\nraise" not in text
    assert "before\nValueError: because\n```" in text


def test_failure_of_a_page_names_its_line(executed_page):
    with pytest.raises(ZeroDivisionError) as caught:
        executed_page("# Title\n\n```python\nx = 1\n1 / 0\n```\n")
    last = caught.traceback[-1]
    assert last.path.name == "page.md" and last.lineno + 1 == 5


def test_warning_in_a_page_is_an_error(executed_page):
    with pytest.raises(UserWarning, match="careful"):
        executed_page("```python\nimport warnings\nwarnings.warn('careful')\n```\n")


def test_exception_that_does_not_come_is_an_error(executed_page):
    with pytest.raises(ValueError, match="page.md:2: the cell must raise TypeError"):
        executed_page("```python raises=TypeError\nx = 1\n```\n")


FIGURE = "import matplotlib.pyplot as plt\nplt.plot([0, 1])\n"


def test_figure_is_drawn_for_light_and_dark_pages(executed_page, tmp_path):
    text = executed_page(f'```python alt="A rising line"\n{FIGURE}```\n')
    light, dark = "page-0-light.svg", "page-0-dark.svg"
    assert f"![A rising line]({light}#only-light)" in text
    assert f"![A rising line]({dark}#only-dark)" in text
    texts = [(tmp_path / "out" / name).read_text() for name in (light, dark)]
    assert "#333333" in texts[0] and "#333333" not in texts[1]
    assert not plt.get_fignums()


def _inks(svg):
    """The colours of the opaque pixels of the rasters of a figure."""
    (encoded,) = re.findall(r'base64,\s*([^"]+)', svg)
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    pixels = np.asarray(image).reshape(-1, 4)
    return {tuple(pixel[:3].tolist()) for pixel in pixels if pixel[3] == 255}


def test_black_dots_are_light_on_dark_pages(executed_page, tmp_path):
    code = "import matplotlib.pyplot as plt\n"
    code += "plt.scatter([0, 1], [0, 1], s=90, c='black', rasterized=True)\n"
    executed_page(f'```python alt="Two black dots"\n{code}```\n')
    light, dark = (
        (tmp_path / "out" / f"page-0-{page}.svg").read_text()
        for page in ("light", "dark")
    )
    assert _inks(light) == {(0, 0, 0)} and _inks(dark) == {(242, 242, 242)}
    assert '<svg fill="#f2f2f2"' in dark


def test_figure_without_a_text_is_an_error(executed_page):
    with pytest.raises(ValueError, match="must be marked with alt"):
        executed_page(f"```python\n{FIGURE}```\n")
    plt.close("all")


GOOD = """<h1 id="top">Title</h1> <a href="other.html#there">link</a>
<a href="#top">up</a> <a href="https://example.org/x">outside</a>
<img src="a.svg" alt="A picture of it"> <code>x[0][1] and \\(y\\)</code>
<link rel="canonical" href="https://example.org/"> <link rel="icon" href="a.svg">
"""
BAD = {
    '<a href="nowhere.html">link</a>': "no such page: nowhere.html",
    '<a href="other.html#nowhere">link</a>': "no such anchor: other.html#nowhere",
    '<a href="#nowhere">link</a>': "no such anchor: #nowhere",
    '<img src="b.svg" alt="A picture of it">': "no such file: b.svg",
    '<img src="a.svg" alt="">': "image without alternative text",
    '<script src="https://example.org/x.js"></script>': "from elsewhere",
    "<p>see [`eqmdm.x`][]</p>": "unresolved reference",
    "<p>\\(x\\)</p>": "LaTeX that is not rendered",
    "<p>**Arguments</p>": "Markdown that is not rendered",
}


@pytest.fixture
def site(tmp_path):
    (tmp_path / "other.html").write_text('<h2 id="there">Here</h2>')
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text(GOOD)
    return tmp_path


def test_site_without_faults_passes(site):
    assert not list(faults(site))


@pytest.mark.parametrize("fault", BAD)
def test_fault_of_a_site_is_found(fault, site):
    (site / "index.html").write_text(GOOD + fault)
    (found,) = faults(site)
    assert found.startswith("index.html: ") and BAD[fault] in found


def test_page_without_code_is_unchanged(tmp_path):
    source = SOURCES["how-to/resume.md"]
    text = source.read_text()
    assert page(source, executed(source)).strip() == text.strip()
