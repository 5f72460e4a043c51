"""The generated parts of the prose pages: tallies, question cards, the verdict board, machines, rules, profiles.

Each is a directive or role that reads a file which staging wrote (``data/*.json`` beside the pages), so that no number
on a prose page is typed by hand.  Everything is plain HTML that reads without JavaScript.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.parsers.rst import Directive

from cnnstudy.report import theme
from cnnstudy.report.plan import PROFILES

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

BOARD = "book/board"
Row = Mapping[str, Any]
Link = Callable[[str], str]  # the name of a page -> its address, seen from the page that is written


# words and numbers ------------------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 4) -> str:
    """A measured number for a reader: four significant digits, thousands set apart; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "–"
    if value == 0 or 1e-3 <= abs(value) < 1e15:
        whole = math.floor(math.log10(abs(value))) + 1 if value else 1  # digits before the point; under one: 0, -1, ...
        text = f"{value:,.{max(0, digits - whole)}f}" if float(value) != int(value) else f"{int(value):,}"
        return text.replace(",", "\u202f").replace("-", "−")
    return f"{value:.{digits - 2}e}"


def anchor(claim: str) -> str:
    """The id of a claim's verdict on its page: ``q33.a-b`` is at ``#q33-a-b``."""
    return claim.replace(".", "-")


def badge(outcome: str) -> str:
    """An outcome as a coloured badge: sign, colour and word say the same thing."""
    return f'<span class="cnn-badge" data-outcome="{escape(outcome)}">{escape(outcome)}</span>'


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def by_question(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by question, in order of the question's number."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: str(r["question"])):
        found.setdefault(str(row["question"]), []).append(row)
    return found


# HTML -------------------------------------------------------------------------------------------------------------------


def bar(rows: Sequence[Row]) -> str:
    """A stacked bar of outcomes, for the eye only: the same counts stand beside it as text."""
    counts = Counter(str(row["outcome"]) for row in rows)
    parts = [f'<span data-outcome="{o}" style="flex-grow:{counts[o]}"></span>' for o in theme.OUTCOME if counts[o]]
    return f'<div class="cnn-bar" aria-hidden="true">{"".join(parts)}</div>'


def tally(rows: Sequence[Row], link: Link) -> str:
    """The verdicts so far: a bar, and a list of counts that lead to the board, with what each outcome means."""
    counts = Counter(str(row["outcome"]) for row in rows)
    items = [
        f'<li><a href="{link(BOARD)}?outcome={o}"><b>{counts[o]}</b> {badge(o)}</a> <span>{escape(meaning)}</span></li>'
        for o, meaning in theme.OUTCOME_MEANING.items()
    ]
    return f'<div class="cnn-tally">{bar(rows)}<ul>{"".join(items)}</ul></div>'


def cards(rows: Sequence[Row], link: Link, pages: Mapping[str, str]) -> str:
    """One card per question: its title, its bar, and how many of its claims have which outcome."""
    out = []
    for question, own in by_question(rows).items():
        counts = Counter(str(row["outcome"]) for row in own)
        said = ", ".join(f"{counts[o]} {o}" for o in theme.OUTCOME if counts[o])
        title = escape(str(own[0].get("title") or question))
        if question in pages:
            title = f'<a href="{link(pages[question])}">{title}</a>'
        out.append(
            f'<li class="cnn-card"><p class="cnn-kicker">{question.upper()} · {escape(str(own[0].get("part") or ""))}</p>'
            f'<p class="cnn-title">{title}</p>{bar(own)}<p class="cnn-counts">{plural(len(own), "claim")}: {said}</p></li>'
        )
    return f'<ul class="cnn-cards">{"".join(out)}</ul>'


def found(row: Row) -> str:
    """What was found for one claim, in one line: estimate, interval, n, machine and profile, as far as there are any."""
    parts = []
    if row.get("estimate") is not None:
        text = f"estimate <b>{number(row['estimate'])}</b>"
        if row.get("low") is not None and row.get("high") is not None and row["low"] != row["high"]:
            text += f" [{number(row['low'])}, {number(row['high'])}]"
        parts.append(text)
    if row.get("n"):
        parts.append(f"n = {number(row['n'])}")
    parts += [escape(str(row[key])) for key in ("machine", "profile") if row.get(key)]
    if row.get("rule"):
        parts.append(f"<code>{escape(str(row['rule']))}</code>")
    if row.get("changed"):
        parts.append(escape(str(row["changed"])))
    return " · ".join(parts)


def _evidence(row: Row) -> list[str]:
    kinds = row.get("evidence") or []
    return [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]


def board(rows: Sequence[Row], link: Link, pages: Mapping[str, str]) -> str:
    """The table of all claims, one group of rows per question; ``board.js`` adds the filters.

    The roles are written out because the style sheet lays rows out as blocks on a phone, which would take the table's
    meaning from a screen reader.
    """
    groups = []
    for question, own in by_question(rows).items():
        title = f"{question.upper()} · {escape(str(own[0].get('title') or ''))}"
        head = f'<a href="{link(pages[question])}">{title}</a>' if question in pages else title
        lines = [f'<tr role="row" class="cnn-group"><th role="rowheader" scope="rowgroup" colspan="3">{head}</th></tr>']
        for row in own:
            claim, outcome = str(row["id"]), str(row["outcome"])
            place = f"{link(pages[question])}#{anchor(claim)}" if question in pages else ""
            statement = escape(str(row.get("statement") or claim))
            where = f'<a href="{place}">{statement}</a>' if place else statement
            kinds = _evidence(row)
            lines.append(
                f'<tr role="row" data-outcome="{escape(outcome)}" data-part="{escape(str(row.get("part") or ""))}" '
                f'data-evidence="{escape(" ".join(kinds))}">'
                f'<td role="cell">{badge(outcome)}</td>'
                f'<td role="cell">{where}<br><small><code>{escape(claim)}</code> · {escape(", ".join(kinds))}</small></td>'
                f'<td role="cell">{escape(str(row.get("reason") or ""))}<br><small>{found(row)}</small></td></tr>'
            )
        groups.append(f'<tbody role="rowgroup">{"".join(lines)}</tbody>')
    head = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in ("Verdict", "Claim", "What was found"))
    return (
        f'<div class="cnn-board"><div class="cnn-filter"></div><table role="table" class="cnn-claims">'
        f"<caption>All {plural(len(rows), 'claim')}, by question</caption>"
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>{"".join(groups)}</table></div>'
    )


def table(caption: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A plain table with a row header each; cells are HTML.  It scrolls sideways by itself on a narrow screen."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in lines)
    return (
        f'<div class="cnn-scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def machines(entries: Sequence[Mapping[str, Any]]) -> str:
    """One table of all machines: what each is, and what has been recorded on it."""
    lines = [
        (
            f"<code>{escape(str(m['id']))}</code>",
            "<br>".join(escape(str(m[key])) for key in ("cpu", "gpu") if m.get(key)) or "–",
            number(m.get("cores")),
            number(m.get("memory_gib"), 3),
            " · ".join(f"{escape(label)} {escape(str(m[key]))}" for label, key in SOFTWARE if m.get(key)) or "–",
            "<br>".join(f"{q.upper()}: {number(n)}" for q, n in sorted((m.get("records") or {}).items())) or "none yet",
        )
        for m in entries
    ]
    heads = ("machine", "processor", "cores", "memory (GiB)", "software", "records")
    return table(f"{plural(len(lines), 'machine')} with records", heads, lines)


SOFTWARE = (("", "os"), ("Python", "python"), ("PyTorch", "torch"))


def rules(entries: Sequence[Mapping[str, Any]]) -> str:
    """The rules, each with its docstring's first paragraph, and how many conditions of the ledger use it."""
    lines = [
        (f"<code>{escape(r['name'])}</code>", re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(r["text"])), number(r["uses"]))
        for r in entries
    ]
    return table(f"{plural(len(lines), 'rule')}", ("rule", "holds when", "conditions"), lines)


def profiles(entries: Sequence[Mapping[str, Any]]) -> str:
    """Planned measurements by page and profile, and how many of them are recorded on some machine."""
    names = [name for name in PROFILES if any(name in e["profiles"] for e in entries)]
    lines = [
        (
            str(e["question"]).upper(),
            *(
                f"{number(e['profiles'][n]['expected'])} ({number(e['profiles'][n]['recorded'])})" if n in e["profiles"] else "–"
                for n in names
            ),
        )
        for e in entries
    ]
    return table("Measurements planned (and recorded so far) by profile", ("page", *names), lines)


# Sphinx -----------------------------------------------------------------------------------------------------------------


def _read(env: BuildEnvironment, name: str) -> Any:
    path = Path(env.srcdir) / "data" / f"{name}.json"
    env.note_dependency(str(path))  # the page is read anew when its numbers change
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def question_pages(env: BuildEnvironment) -> dict[str, str]:
    """The page of each question that has one: ``{"q33": "notebooks/q33_..."}``."""
    names = sorted(name for name in env.found_docs if name.startswith("notebooks/q"))
    return {name.removeprefix("notebooks/").partition("_")[0]: name for name in names}


class _Part(Directive):
    """A directive without content that becomes one piece of HTML; a subclass says which file it reads and how."""

    source: str
    render: Callable[[Any, Link, Mapping[str, str]], str]

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        here = env.docname
        text = type(self).render(_read(env, self.source), lambda page: env.app.builder.get_relative_uri(here, page), question_pages(env))
        return [nodes.raw("", text, format="html")]


def directive(source: str, render: Callable[[Any, Link, Mapping[str, str]], str]) -> type[Directive]:
    """A directive that shows what ``render`` makes of ``data/<source>.json``."""
    return type("Part", (_Part,), {"source": source, "render": staticmethod(render)})


def _outcome_role(name: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = None) -> Any:
    return [nodes.raw(rawtext, badge(text), format="html")], []


def _count_role(name: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = None) -> Any:
    counts = _read(inliner.document.settings.env, "counts") or {}
    if text not in counts:
        return [], [inliner.reporter.warning(f"no count {text!r}; valid: {', '.join(counts)}", line=lineno)]
    return [nodes.Text(number(counts[text]))], []


def register(app: Sphinx) -> None:
    """Add the directives and roles of this module."""
    app.add_directive("verdict-tally", directive("verdicts", lambda rows, link, _: tally(rows, link)))
    app.add_directive("question-cards", directive("verdicts", cards))
    app.add_directive("verdict-board", directive("verdicts", board))
    app.add_directive("machine-table", directive("machines", lambda entries, *_: machines(entries)))
    app.add_directive("rule-table", directive("rules", lambda entries, *_: rules(entries)))
    app.add_directive("profile-table", directive("plans", lambda entries, *_: profiles(entries)))
    app.add_role("outcome", _outcome_role)
    app.add_role("count", _count_role)
