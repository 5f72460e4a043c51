"""The book's status page: two directives that read ``data/status.json``, which staging wrote beside the pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from cnnstudy.report import pages, theme
from cnnstudy.report.live import clock
from cnnstudy.report.plan import PROFILES

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def tables(status: Mapping[str, Any], link: pages.Link, where: Mapping[str, str]) -> str:
    """One table per machine: a row per page, with its verdicts, what is recorded of each profile, and time."""
    return "".join(_machine(m, link, where) for m in status.get("machines", ())) or "<p>Nothing is recorded yet.</p>"


def _machine(machine: Mapping[str, Any], link: pages.Link, where: Mapping[str, str]) -> str:
    own = machine["pages"]
    runs = any(page["last"] for page in own)
    lines = [
        [
            _page(page["question"], link, where),
            _verdicts(page["verdicts"]),
            *(_share(page["profiles"][name]) for name in PROFILES),
            _notes(page),
            clock(page["planned"]["seconds"]),
            *([" · ".join(escape(p) for p in (page["last"], page["failure"]) if p) or "–"] if runs else []),
        ]
        for page in own
    ]
    heads = ["page", "verdicts", *PROFILES, "stale, failed", "measured in", *(["last run"] if runs else [])]
    table = pages.table(f"{machine['id']}: {clock(machine['hours'] * 3600)} of measuring", heads, lines)
    return f'<div class="cnn-status">{table}</div>'


def _page(question: str, link: pages.Link, where: Mapping[str, str]) -> str:
    return f'<a href="{link(where[question])}">{question.upper()}</a>' if question in where else question.upper()


def _share(count: Mapping[str, Any]) -> str:
    """``101 of 170``, over a bar that says the same."""
    expected, recorded = count["expected"], count["recorded"]
    if not expected:
        return "–"
    bar = f'<span class="cnn-share" aria-hidden="true"><span style="width:{100 * recorded // expected}%"></span></span>'
    return f"{pages.number(recorded)} of {pages.number(expected)}{bar}"


def _verdicts(counts: Mapping[str, int]) -> str:
    """The page's verdicts from this machine's records: ``13 confirmed, 2 refuted``, over a bar."""
    said = ", ".join(f"{counts[o]}\u00a0{o}" for o in theme.OUTCOME if counts.get(o))
    return f"{said or '–'}{pages.bar([{'outcome': outcome} for outcome, n in counts.items() for _ in range(n)])}"


def _notes(page: Mapping[str, Any]) -> str:
    planned, said = page["planned"], {"stale": "stale", "vouched": "vouched for", "failed": "failed"}
    words = [f"{planned[name]} {word}" for name, word in said.items() if planned[name]]
    return ", ".join(words) or "–"


def lacking(status: Mapping[str, Any], link: pages.Link, where: Mapping[str, str]) -> str:
    """What untested claims wait for: by page, which measurements, on the machine that lacks the fewest, and for how long."""
    out = []
    for question, own in pages.by_question(status.get("lacking", ())).items():
        items = []
        for row in own:
            place = f"{link(where[question])}#{pages.anchor(row['claim'])}" if question in where else ""
            statement = escape(row["statement"])
            text = f'<a href="{place}">{statement}</a>' if place else statement
            time = f", about {clock(row['seconds'])}" if row["seconds"] is not None else ""
            items.append(f"<li>{text}<br><small>{escape(row['needs'])} on <code>{escape(row['machine'])}</code>{time}</small></li>")
        out.append(f"<details><summary>{question.upper()}: {pages.plural(len(own), 'claim')}</summary><ul>{''.join(items)}</ul></details>")
    return f'<div class="cnn-fold cnn-lacking">{"".join(out)}</div>' if out else "<p>Every claim that can be decided has been.</p>"


def register(app: Sphinx) -> None:
    """Add the directives of this module."""
    app.add_directive("status-tables", pages.directive("status", lambda status, *about: tables(status or {}, *about)))
    app.add_directive("status-lacking", pages.directive("status", lambda status, *about: lacking(status or {}, *about)))
