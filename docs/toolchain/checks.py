"""Checks of the built site for what a strict build passes."""

import dataclasses
import posixpath
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


_LOADED = {"img": "src", "script": "src", "link": "href", "source": "src"}
# Kinds of <link> that a browser does not fetch.
_NOT_FETCHED = {"canonical", "prev", "next", "alternate"}


@dataclasses.dataclass
class _Page:
    anchors: set[str] = dataclasses.field(default_factory=set)
    links: list[str] = dataclasses.field(default_factory=list)
    loaded: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)


class _Reader(HTMLParser):
    """The anchors and links of a page, and the faults that its own text shows."""

    def __init__(self) -> None:
        super().__init__()
        self.page = _Page()
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.page.anchors |= {own[name] for name in ("id", "name") if name in own}
        if tag in ("code", "pre", "script", "style", "annotation"):
            self._code += 1
        if tag == "a" and "href" in own:
            self.page.links.append(own["href"])
        fetched = not _NOT_FETCHED & set(own.get("rel", "").split())
        if (name := _LOADED.get(tag)) and own.get(name) and fetched:
            self.page.loaded.append(own[name])
        if tag == "img" and len(own.get("alt", "")) < 8:
            self.page.faults.append(f"image without alternative text: {own.get('src')}")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("code", "pre", "script", "style", "annotation"):
            self._code -= 1

    def handle_data(self, data: str) -> None:
        if self._code:
            return
        for pattern, fault in (
            (r"\]\[", "unresolved reference"),
            (r"\]\(\w", "link that is not one"),
            (r"\\[(\[]|\$\$", "LaTeX that is not rendered"),
            (r"\*\*\w|```|^:::", "Markdown that is not rendered"),
        ):
            if re.search(pattern, data):
                self.page.faults.append(f"{fault}: {data.strip()[:80]!r}")


def faults(site: Path) -> Iterator[str]:
    """A text for each fault of a site: of links, anchors, images, references, and for
    everything that would be loaded from elsewhere."""
    pages = {}
    for file in sorted(site.rglob("*.html")):
        reader = _Reader()
        reader.feed(file.read_text(encoding="utf-8"))
        pages[file.relative_to(site).as_posix()] = reader.page
    for name, page in pages.items():
        yield from (f"{name}: {fault}" for fault in page.faults)
        if name == "404.html":
            continue
        for url in page.loaded:
            if urlsplit(url).scheme in ("http", "https"):
                yield f"{name}: loads {url} from elsewhere"
            elif not urlsplit(url).scheme and not _exists(site, name, url):
                yield f"{name}: no such file: {url}"
        for url in page.links:
            yield from _link_faults(site, pages, name, url)


def _link_faults(
    site: Path, pages: dict[str, _Page], name: str, url: str
) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.scheme:
        return
    target = _target(name, parts.path)
    if not (site / target).is_file():
        yield f"{name}: no such page: {url}"
    elif parts.fragment and target in pages:
        if unquote(parts.fragment) not in pages[target].anchors | {"__tabbed"}:
            yield f"{name}: no such anchor: {url}"


def _exists(site: Path, name: str, url: str) -> bool:
    return (site / _target(name, urlsplit(url).path)).is_file()


def _target(name: str, path: str) -> str:
    joined = posixpath.join(posixpath.dirname(name), unquote(path))
    return posixpath.normpath(joined) if path else name
