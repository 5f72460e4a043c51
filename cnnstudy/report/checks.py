"""The check of a built site: links lead somewhere, ids are unique, pictures are described, nothing is fetched from elsewhere.

Sphinx cannot see all of it: myst-nb renders every form of an output and only then picks one, so a label may resolve in a
form that is not shown, and HTML outputs are not looked into at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cnnstudy.config import Refused

_LOADED = {  # what a browser fetches by itself when it opens a page
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
_PASSIVE = {"canonical", "search", "next", "prev", "index", "author", "copyright", "license", "alternate"}  # <link rel> that loads nothing
_CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)['"]?((?:https?:)?//[^'")\s]+)""")
_UNREAD = re.compile(r"\\begin\{\w+\*?\}|\{(?:glue:\w+|cite:\w+|numref|eq|ref|doc|outcome|count)\}`[^`]*`?")  # markup left in the text
_QUIET = {"pre", "code", "script", "style", "math", "title"}  # whose text may look like markup
_FILE_NAME = re.compile(r"^\S+\.(png|svg|jpe?g|gif|webp)$", re.IGNORECASE)


class Page(HTMLParser):
    """What the check needs to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.problems: list[str] = []
        self.verdicts: dict[str, str] = {}  # id of a claim's verdict -> its outcome
        self.language = self.title = False
        self._inside: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if given.get("id"):
            self.ids[given["id"]] += 1
        if "cnn-verdict" in given.get("class", "").split():
            self.verdicts[given.get("id", "")] = given.get("data-outcome", "")
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        self.loads += [given[name] for name in _LOADED.get(tag, ()) if given.get(name)]
        if tag == "link" and given.get("href") and not set(given.get("rel", "").split()) & _PASSIVE:
            self.loads.append(given["href"])
        if "style" in given:
            self.loads += _CSS_URL.findall(given["style"])
        if tag == "img" and given.get("role") != "presentation":
            alt = dict(attrs).get("alt", None)
            if alt is None or alt == given.get("src") or _FILE_NAME.match(alt):
                self.problems.append(f"picture without alternative text: …{given.get('src', '')[-44:]}")
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.links.append(given.get("content", "").partition("url=")[2].strip("'\" "))
        self.language |= tag == "html" and bool(given.get("lang"))
        self.title |= tag == "title"
        if tag in _QUIET:
            self._inside[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if self._inside[tag]:
            self._inside[tag] -= 1

    def handle_data(self, data: str) -> None:
        if self._inside["style"]:
            self.loads += _CSS_URL.findall(data)
        if not self._inside.total():
            self.problems += [f"markup that was not read: {found}" for found in _UNREAD.findall(data)]


def _elsewhere(address: str) -> bool:
    url = urlsplit(address)
    return bool(url.netloc) or url.scheme in ("http", "https", "ftp")


def check_site(root: Path) -> list[str]:
    """All that is wrong with the site in ``root``, one line each, in a fixed order; an empty list if nothing is.

    Raises:
        Refused: there is no built site.
    """
    if not (root / "index.html").exists():
        raise Refused(f"no built site at {root}: it has no index.html; build one with: python -m cnnstudy.report.site build")
    files = sorted(path for path in root.rglob("*.html") if "_static" not in path.relative_to(root).parts)
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in files}
    found: set[str] = set()
    for path, page in pages.items():
        where = path.relative_to(root.resolve()).as_posix()
        found |= {f"{where}: {problem}" for problem in _check_page(path, page, pages)}
    for style in sorted(root.rglob("*.css")):
        for address in _CSS_URL.findall(style.read_text("utf-8", errors="replace")):
            found.add(f"{style.relative_to(root).as_posix()}: would be fetched from elsewhere: {address}")
    return sorted(found)


def disagreements(root: Path, outcomes: Mapping[str, str]) -> list[str]:
    """Claims whose page says another verdict than the board, which is drawn from the records as they are now.

    Args:
        root: the built site.
        outcomes: the board's outcome of each claim, by the id of its verdict (``q33-...``).
    """
    said = {name: page for path in sorted(root.glob("notebooks/*.html")) for name, page in Page(path.read_text("utf-8")).verdicts.items()}
    return [
        f"{name}: {said[name]} on its page, {outcome} on the board"
        for name, outcome in sorted(outcomes.items())
        if said.get(name, outcome) != outcome
    ]


def _check_page(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    problems = list(page.problems)
    problems += [f"id used {times} times: {name}" for name, times in page.ids.items() if times > 1]
    if path.name != "index.html" and not (page.language and page.title):  # index.html only leads to the first page
        problems.append("the page lacks a language or a title")
    for address in dict.fromkeys(page.loads):
        if _elsewhere(address):
            problems.append(f"would be fetched from elsewhere: {address}")
    for address in dict.fromkeys(page.links + page.loads):
        url = urlsplit(address)
        if url.scheme or url.netloc:
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        target = target / "index.html" if target.is_dir() else target
        if not target.exists():
            problems.append(f"leads to no file: {address}")
        elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
            problems.append(f"leads to no such id: {address}")
    return problems
