"""The page of a run as HTML: every text of a file is escaped."""

import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from .chart import Line, chart
from .contents import Contents, Picture, Term
from .style import STYLE


# The page needs nothing but itself, and its reader is told so.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# The longest text of a value; a longer one is cut.
_LONGEST = 2000
# The terms that are sums, and so are set apart.
_SUMS = ("total", "bits_per_dim", "nats")
# The options that the head of the page has already, or that no reader compares.
_APART = ("data_fingerprint", "data")


def page(found: Contents) -> str:
    """The whole page."""
    title = escape(found.name)
    sections = [
        _section("Training", _curves(found)),
        *(_section(p.title, _picture(p, found.classes)) for p in found.pictures),
        _section("Test bound", _bound(found)),
        _section("Options", _options(found)),
        _section("Versions and device", _facts(found)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_head(found)}\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _head(found: Contents) -> str:
    names = ("dataset", "diffusion", "score", "network", "width", "seed")
    given = [found.text(name) for name in names]
    # A run of `eqmdm.fit` records none of these.
    words = [f"{name} {value}" for name, value in zip(names, given, strict=True)]
    line = f"<p>{escape(', '.join(words))}</p>" if all(given) else ""
    cards = []
    headline = next((t for t in found.terms if t.name == found.loss_name), None)
    if headline is not None:
        n = found.bound.get("examples")
        cards.append(("test bound", _number(headline), f"{found.unit}, {n} examples"))
    if found.curves["validation"]:
        best = min(found.curves["validation"], key=lambda point: point.value)
        shown = Term("", best.value, best.error, "")
        cards.append(("best validation", _number(shown), f"at step {best.step:,}"))
    if found.curves["training"]:
        step, total = found.curves["training"][-1].step, found.options.get("steps")
        of = f"of {total:,}" if type(total) is int else ""
        cards.append(("steps", f"{step:,}", of))
    boxes = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd>{escape(note)}</dd></div>"
        for name, value, note in cards
    )
    boxes = f'<dl class="cards">{boxes}</dl>' if boxes else ""
    return f"<header>\n<h1>{escape(found.name)}</h1>\n{line}\n{boxes}\n</header>"


def _number(term: Term) -> str:
    error = "" if math.isnan(term.error) else f" <small>± {term.error:.4f}</small>"
    return f"{term.mean:.4f}{error}"


def _curves(found: Contents) -> str:
    loss = [
        Line("training", "training, last parameters", found.curves["training"]),
        Line("validation", "validation, EMA parameters", found.curves["validation"]),
    ]
    norm = [Line("norm", "gradient norm before clipping", found.curves["grad_norm"])]
    shown = chart(loss, f"negative bound ({found.unit})") + chart(norm, "gradient norm")
    if not shown:
        return ""
    note = "Training: means over the steps between two points. The vertical axis may "
    note += "leave out the first tenth of them."
    if found.curves["validation"]:
        note += " Bars: standard errors over the validation examples."
    return f'{shown}\n<p class="note">{note}</p>'


def _picture(picture: Picture, classes: list[str] | None) -> str:
    if picture.uri is None:
        file = escape(picture.file)
        return (
            f'<p>In the file <a href="{file}">{file}</a> beside this page: a page '
            "shows only valid PNG and SVG pictures.</p>"
        )
    image = f'<img src="{picture.uri}" alt="{escape(picture.title)}">'
    if not picture.is_by_class or classes is None:
        return image
    named = escape(", ".join(classes))
    return f'{image}\n<p class="note">Each column is a class: {named}.</p>'


def _bound(found: Contents) -> str:
    if not found.terms:
        return ""
    rows = []
    for term in found.terms:
        error = "not known" if math.isnan(term.error) else f"{term.error:.4f}"
        kind = ' class="sum"' if term.name in _SUMS else ""
        cells = [term.name.replace("_", " "), f"{term.mean:.4f}", error, term.unit]
        name, *rest = map(_cut, cells)
        rows.append(
            f'<tr{kind}><th scope="row">{name}</th>'
            + "".join(f"<td>{cell}</td>" for cell in rest)
            + "</tr>"
        )
    titles = ("term", "mean", "standard error", "unit")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    settings = ", ".join(f"{k}: {v}" for k, v in found.bound.items())
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
        f'<p class="note">{_cut(settings)}. The terms in nats add up to the total, a '
        "lower bound of the log-likelihood; standard errors are over examples.</p>"
    )


def _options(found: Contents) -> str:
    shown = {k: v for k, v in found.options.items() if k not in _APART}
    table = _pairs(shown.items())
    data = {k: v for k, v in found.options.items() if k in _APART}
    return f"<details open><summary>{len(shown)} options</summary>{table}</details>" + (
        f"<details><summary>the data</summary>{_pairs(data.items())}</details>"
        if data
        else ""
    )


def _facts(found: Contents) -> str:
    facts = {k: v for k, v in found.record.items() if k not in ("options", "builder")}
    versions, device = facts.pop("versions", {}), facts.pop("device", {})
    groups = {"versions": versions, "device": device, "run": facts}
    parts = [
        f"<h3>{title}</h3>{_pairs(values.items())}"
        for title, values in groups.items()
        if isinstance(values, Mapping) and values
    ]
    return "".join(parts)


def _pairs(rows: Iterable[tuple[str, Any]]) -> str:
    shown = "".join(
        f"<div><dt>{_cut(name)}</dt><dd>{_cut(_as_text(value))}</dd></div>"
        for name, value in rows
    )
    return f'<dl class="pairs">{shown}</dl>'


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(v, list | dict) for v in value):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else json.dumps(value)


def _cut(text: str) -> str:
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
    return escape(text)
