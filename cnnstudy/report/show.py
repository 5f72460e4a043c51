"""What a reader sees: run card, figures, tables, numbers in prose, verdict box, evidence.

Everything here is drawn from records.  Outputs carry alternative text, caption and label in their metadata, where
the site reads them; they hold no time, path or version, so that two runs of a page are identical to the byte.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cnnstudy import load
from cnnstudy.config import Refused

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from cnnstudy.report.claims import Ledger
    from cnnstudy.report.study import Study
    from cnnstudy.report.verdicts import Verdict

Format = str | Callable[[Any], str]
REHEARSAL = "A rehearsal"  # a caption with these words tells of networks that are hardly trained; its figure must not look like a result


def _emit(data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    from IPython.display import display

    display(dict(data), metadata=dict(metadata or {}), raw=True)


def glue(**values: Any) -> None:
    """Put values into the prose: ``glue(gap=0.123)`` and, in Markdown of the same page, ``{glue:text}`gap:.2f```."""
    for name, value in values.items():
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, str) and re.fullmatch(r"[\d_.]+(,[\d_.]+)+", value):  # the site reads "10,000" as a pair
            raise Refused(f"glue {name}={value!r} would be shown as a list of numbers; glue the number, and write `{name}:,` in the text")
        _emit(
            {"application/papermill.record/text/plain": value if isinstance(value, str) else repr(value)},
            {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}},
        )


def figure(fig: Figure, name: str, alt: str, caption: str) -> None:
    """Show a Matplotlib figure.  ``alt``: what one sees; ``caption``: what it is, with n and machine; ``name``: its label."""
    import matplotlib.pyplot as plt

    from cnnstudy.report import theme

    if not alt.strip() or not caption.strip():
        raise Refused(f"figure {name}: alt and caption must not be empty")
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=theme.DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)  # or the inline backend shows it a second time
    picture = base64.b64encode(out.getvalue()).decode()
    _emit({"image/png": picture, "text/plain": alt}, {"image/png": {"alt": alt, "caption": caption, "name": name}})


def source(frame: pd.DataFrame) -> str:
    """The end of a caption: how many runs, which profile, which machine, from the rows that are shown."""
    if not len(frame):
        return "No record yet."
    each = frame["seed"].value_counts()
    seeds = f", {'' if each.nunique() == 1 else 'up to '}{len(each)} seeds each" if len(each) > 1 else ""
    runs = f"{len(frame)} measurement{'s' if len(frame) > 1 else ''}{seeds}"
    machines = ", ".join(sorted(frame["machine"].unique()))
    return f"{runs}; measured on {machines}, profile {', '.join(sorted(frame['profile'].unique()))}."


def rehearsal(frame: pd.DataFrame) -> str:
    """What a caption says of trained networks that only ``quick`` has recorded: the site frames such a figure; otherwise nothing."""
    return f"{REHEARSAL} on few images, which decides nothing. " if len(frame) and (frame["profile"] == "quick").all() else ""


def _cells(frame: pd.DataFrame, formats: Mapping[str, Format] | None) -> list[list[str]]:
    formats = formats or {}
    valid = [str(c) for c in frame.columns]
    for name in formats:
        if name not in valid:
            raise Refused(f"table: no column {name!r} to format; valid: {', '.join(valid)}")

    def text(column: str, value: Any) -> str:
        if value is None or value != value:  # None or NaN
            return "–"
        form = formats.get(column)
        return form(value) if callable(form) else form.format(value) if form else str(value)

    return [[str(label), *(text(str(c), row[c]) for c in frame.columns)] for label, row in frame.iterrows()]


def table(frame: pd.DataFrame, name: str, caption: str, formats: Mapping[str, Format] | None = None) -> None:
    """Show a small table: numbered on the site (MyST), HTML on GitHub.  The index is the stub; ``formats`` by column."""
    head = [str(frame.index.name or ""), *(str(c) for c in frame.columns)]
    body = _cells(frame, formats)
    lines = [f"```{{list-table}} {caption}", f":name: {name}", ":header-rows: 1", ":stub-columns: 1"]
    for row in [head, *body]:
        lines += [("* - " if i == 0 else "  - ") + _escape(cell) for i, cell in enumerate(row)]
    plain = "\n".join(" | ".join(row) for row in [head, *body])
    _emit({"text/markdown": "\n".join([*lines, "```"]), "text/html": _html_table(head, body), "text/plain": plain})


def power(log10: float) -> str:
    """``10⁶`` for a log10 of 6.2: an order of magnitude in prose."""
    return "10" + f"{log10:.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _escape(cell: str) -> str:
    for sign in "\\*_$`|":
        cell = cell.replace(sign, f"\\{sign}")
    return cell


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    first = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>' + "".join(f"<td>{html.escape(c)}</td>" for c in row[1:]) + "</tr>" for row in body
    )
    return f"<table><thead><tr>{first}</tr></thead><tbody>{rows}</tbody></table>"


def _scroll(inner: str, label: str) -> str:
    return f'<div class="cnn-scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">{inner}</div>'


def _hours(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_card(study: Study) -> None:
    """What this page rests on: machine, profiles, measurements recorded and their time; per experiment in a fold."""
    states, body, seen = [], [], Counter[str]()
    for name, spec in study.ledger.experiments.items():
        if spec.kind == "published":
            body.append([name, spec.kind, "–", "–", f"table {spec.table}", "–", "–", "–"])
            continue
        state = study.coverage(name)
        states.append(state)
        done = f"{state.recorded} of {state.expected}"
        load_of_all = Counter(_loads(study, name).values())
        seen += load_of_all
        body.append(
            [name, spec.kind, state.profile, state.machine, done, _hours(state.seconds), str(state.failed or "–"), _counted(load_of_all)]
        )
    recorded, expected = sum(s.recorded for s in states), sum(s.expected for s in states)
    facts = {
        "Machine": ", ".join(sorted({s.machine for s in states if s.recorded})) or "none yet",
        "Profile": ", ".join(p for p in ("quick", "standard", "full") if any(s.profile == p for s in states)) or "none yet",
        "Measurements shown": f"{recorded} of {expected}",
        "Of standard": "{} of {}".format(*study.progress("standard")),
        "Time to measure": _hours(sum(s.seconds for s in states)),
        "Failed": str(sum(s.failed for s in states)),
        **({"While timing": _counted(seen)} if seen else {}),
    }
    items = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    head = ["experiment", "kind", "profile", "machine", "recorded", "time to measure", "failed", "while timing"]
    if not seen:  # nothing on this page was timed
        head, body = head[:-1], [row[:-1] for row in body]
    table = _scroll(_html_table(head, body), "Run card")
    fold = f'<details class="cnn-fold"><summary>By experiment</summary>{table}</details>'
    plain = "; ".join(f"{k}: {v}" for k, v in facts.items())
    _emit({"text/html": f'<dl class="cnn-runcard">{items}</dl>{fold}', "text/plain": plain})


def _loads(study: Study, experiment: str) -> dict[str, str]:
    """Per key of a hardware experiment's records what else the machine did: quiet, disturbed, throttled, not sampled."""
    from cnnstudy.report import evidence as store

    frame = study.frame(experiment)
    if study.ledger.experiments[experiment].kind != "hardware" or not len(frame):
        return {}
    records = store.find(frame["key"], frame["machine"].iloc[0])
    return {key: load.state(record["provenance"]) for key, record in records.items()}


def _counted(states: Mapping[str, int]) -> str:
    """``quiet``, or how many are not: ``2 of 30 disturbed``; a dash where nothing was timed."""
    total = sum(states.values())
    odd = [word if count == total else f"{count} of {total} {word}" for word, count in sorted(states.items()) if word != "quiet"]
    return ", ".join(odd) or ("quiet" if total else "–")


def verdict_box(ledger: Ledger, verdicts: Sequence[Verdict], written_for: Mapping[str, str] | None = None) -> None:
    """One article per claim: verdict, statement, reason; its conditions, folded.  Glues each outcome under the claim's id.

    ``written_for``: the outcomes for which the page's prose was written; where the records now say otherwise, a note
    above the box says so, because prose cannot follow the numbers by itself.
    """
    for verdict in verdicts:
        glue(**{verdict.id: verdict.outcome})
    moved = [v for v in verdicts if written_for and v.id in written_for and written_for[v.id] != v.outcome]
    note = ""
    if moved:
        items = "".join(f"<li><code>{v.id}</code>: {v.outcome}, not {(written_for or {})[v.id]}</li>" for v in moved)
        head = "<p>The text was written for other verdicts than these records give:</p>"
        note = f'<div class="cnn-note" role="note">{head}<ul>{items}</ul></div>'
    statements = {claim.id: claim for claim in ledger.claims}
    articles = "".join(_article(statements[v.id], v) for v in verdicts)
    plain = "\n".join(f"{v.outcome:>10}  {v.id}: {v.reason}" for v in verdicts)
    _emit({"text/html": f'{note}<section class="cnn-verdicts" aria-label="Verdicts">{articles}</section>', "text/plain": plain})


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _article(claim: Any, verdict: Verdict) -> str:
    rows = [
        [name, claim.conditions[name].get("text", "–"), claim.conditions[name]["rule"], f.state,
         "–" if f.estimate is None else f"{f.estimate:.4g}", _interval(f.low, f.high), str(f.n), f.reason]
        for name, f in verdict.findings.items()
    ]  # fmt: skip
    head = ["condition", "asks", "rule", "state", "estimate", "95 % interval", "n", "why"]
    details = ""
    if rows:
        expressions = "; ".join(f"{word} if {text}" for word, text in claim.outcomes.items())
        details = (
            f"<details><summary>Conditions and test</summary><p>{html.escape(' '.join(claim.test.split()))}</p>"
            f"<p>Read as: {html.escape(expressions)}.</p>" + _scroll(_html_table(head, rows), f"Conditions of {claim.id}") + "</details>"
        )
    said = [f"How the test was read: {claim.note}"] if claim.note else []
    notes = "".join(f'<p class="cnn-meta">{html.escape(line)}</p>' for line in [*said, *([verdict.changed] if verdict.changed else [])])
    meta = " · ".join([f"<code>{claim.id}</code>", ", ".join(claim.evidence), f"rule digest <code>{verdict.digest}</code>"])
    return (
        f'<article class="cnn-verdict" id="{claim.id.replace(".", "-")}" data-outcome="{verdict.outcome}">'
        f'<p class="cnn-claim"><span class="cnn-badge" data-outcome="{verdict.outcome}">{verdict.outcome}</span> '
        f"<q>{html.escape(' '.join(claim.statement.split()))}</q></p>"
        f'<p class="cnn-reason">{html.escape(verdict.reason)}</p>{details}{notes}<p class="cnn-meta">{meta}</p></article>'
    )


def evidence(study: Study, columns: int = 12) -> None:
    """Every record that the page draws on, folded: setup, seed, metrics, key; for a time, what else the machine did (``load``)."""
    parts = []
    for name, spec in study.ledger.experiments.items():
        if spec.kind == "published" or not len(frame := study.frame(name)):
            continue
        varied = [c for c in frame.columns if c not in ("machine", "profile", "failed", "key", "seed") and _varies(frame[c])]
        shown = frame.set_index("key")[[*varied[:columns], "seed"]]
        if loads := _loads(study, name):
            shown = shown.assign(load=[loads[key] for key in shown.index])
        body = _cells(shown, {c: _short for c in map(str, shown.columns)})
        inner = _scroll(_html_table(["key", *map(str, shown.columns)], body), f"Records of {name}")
        parts.append(f'<details class="cnn-fold"><summary>{name}: {len(frame)} records</summary>{inner}</details>')
    _emit({"text/html": "".join(parts) or "<p>No record yet.</p>", "text/plain": f"{len(parts)} experiments with records"})


def _varies(column: pd.Series) -> bool:
    return column.map(repr).nunique() > 1 and not column.map(lambda v: isinstance(v, (list, dict))).any()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
