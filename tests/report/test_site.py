"""The site: what is staged, what notebooks' outputs become, what the check finds, and that a build repeats itself."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cnnstudy.config import Refused
from cnnstudy.report import checks, pages, site, sphinxext, theme
from cnnstudy.runtime import ROOT

VEGA = "application/vnd.vegalite.v6+json"
ALT = "A falling line: the loss of the plain net."


def row(claim: str, outcome: str, **more: Any) -> dict[str, Any]:
    question = claim.partition(".")[0]
    measured = {"estimate": 0.2131, "low": 0.18, "high": 0.25, "n": 3, "machine": "epyc-2core", "profile": "standard"}
    nothing = dict.fromkeys(measured)
    return {
        "id": claim, "outcome": outcome, **(nothing if outcome == "untested" else measured), "rule": "difference_above",
        "reason": "a < b & c.", "question": question, "title": f"Compare {question}", "part": "Training",
        "statement": f"Statement of {claim} <b>.", "evidence": ["exact", "trained"], "changed": None,
    } | more  # fmt: skip


ROWS = [row("q03.one", "confirmed"), row("q33.two", "refuted"), row("q33.three", "untested")]
LINK = "../{}.html".format
PAGES = {"q33": "notebooks/q33_x"}


def test_only_short_pasted_text_is_bold() -> None:
    said = "The first layer gets 0.24 to 3 times the last layer&#39;s."
    number, sentence = (f'<span class="pasted-text">{text}</span>' for text in ("0.24", said))
    body = sphinxext.plain_prose(f"<p>{number} {sentence}</p>")
    assert number in body and sentence.replace("pasted-text", "cnn-prose") in body and body.count("<span") == 2


# pieces of pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0, "0"), (18, "18"), (0.21314, "0.2131"), (25557032, "25\u202f557\u202f032"), (1234.5678, "1\u202f235"),
        (-3.25, "−3.250"), (2.5e-7, "2.50e-07"), (True, "True"), (float("inf"), "∞"), (float("-inf"), "−∞"), (float("nan"), "–"),
    ],
)  # fmt: skip
def test_numbers_for_readers(value: Any, text: str) -> None:
    assert pages.number(value) == text


def test_board_escapes_links_and_names_every_claim() -> None:
    html = pages.board(ROWS, LINK, PAGES)
    assert html.count("<tr role=") == 1 + 2 + len(ROWS)  # head, one line per question, one per claim
    assert '<a href="../notebooks/q33_x.html#q33-two">' in html
    assert "Statement of q03.one &lt;b&gt;." in html and "q03_" not in html  # no page of q03: no link
    assert 'data-evidence="exact trained"' in html and "a &lt; b &amp; c." in html
    assert "<b>0.2131</b> [0.1800, 0.2500] · n = 3 · epyc-2core · standard" in html


def test_tally_and_cards_count_outcomes() -> None:
    assert re.findall(r"<b>(\d)</b>", pages.tally(ROWS, LINK)) == ["1", "1", "0", "0", "1"]
    assert "outcome=refuted" in pages.tally(ROWS, LINK)
    assert "2 claims: 1 refuted, 1 untested" in pages.cards(ROWS, LINK, PAGES)
    assert "1 claim: 1 confirmed" in pages.cards(ROWS, LINK, PAGES)


def test_machines_table_bears_what_a_description_lacks() -> None:
    html = pages.machines(
        [{"id": "bare", "records": {}}, {"id": "full", "gpu": "H200", "cores": 16, "torch": "2.13", "records": {"q03": 1200}}]
    )
    assert "<code>bare</code>" in html and "none yet" in html and "PyTorch 2.13" in html and "Q03: 1\u202f200" in html


# staging and building ---------------------------------------------------------------------------------------------------


def png() -> str:
    """A picture of one white pixel, base64."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0\xff"))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")).decode()


def notebook(text: str, *outputs: dict[str, Any]) -> str:
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": text}]
    for i, output in enumerate(outputs):
        shown = {"output_type": "display_data", "metadata": {}} | output
        cells.append({"cell_type": "code", "id": f"b{i}", "metadata": {}, "execution_count": 1, "source": "show()", "outputs": [shown]})
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The book's own prose and configuration, with two small notebooks."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "book", root / "book")
    shutil.copy(ROOT / "_config.yml", root)
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nparts:\n"
        "  - {caption: Training, chapters: [{file: notebooks/q33_x}, {file: notebooks/q42_y}]}\n"
        "  - {caption: How we know, chapters: [{file: book/board}, {file: book/status}, {file: book/method}, {file: book/machines}, "
        "{file: book/reproduce}, {file: book/references}]}\n"
    )
    (root / "notebooks").mkdir()
    verdicts = "".join(f'<article class="cnn-verdict" id="{pages.anchor(r["id"])}"></article>' for r in ROWS)
    about = {"alt": ALT, "caption": "Loss, 3 seeds; after {cite:t}`he2016deep`.", "name": "fig-loss"}
    (root / "notebooks" / "q33_x.ipynb").write_text(
        notebook(
            "(q33)=\n# Q33\n\nSee {numref}`fig-loss` and {eq}`eq-sum`; $y = F(x) + x$.\n\n"
            "```{math}\n:label: eq-sum\n\\sum_i \\frac{a_i}{2}\n```",
            {"data": {"image/png": png(), "text/plain": ALT}, "metadata": {"image/png": about}},
            {
                "data": {VEGA: {"mark": "point", "title": "</script>"}, "text/plain": "c"},
                "metadata": {VEGA: about | {"name": "fig-2", "caption": "A rehearsal."}},
            },
            {"data": {"text/html": f'<section class="cnn-verdicts">{verdicts}</section>', "text/plain": "v"}},
        )
    )
    (root / "notebooks" / "q42_y.ipynb").write_text(notebook("(q42)=\n# Q42\n\nFrom [](#q33)."))
    return root


COUNT = {"expected": 4, "recorded": 3, "stale": 1, "vouched": 0, "failed": 0, "seconds": 1800.0}
STATUS = {
    "question": "q33", "profiles": {"quick": COUNT, "standard": COUNT, "full": COUNT}, "planned": COUNT,
    "verdicts": {"refuted": 1, "untested": 1}, "last": "measure 30 min 00 s, 1.2 GiB", "failure": None,
}  # fmt: skip
LACKING = {
    "claim": "q33.three", "question": "q33", "statement": "It is <so>.", "machine": "epyc-2core", "needs": "1 of training (standard)",
    "seconds": 600.0,
}  # fmt: skip


def data() -> dict[str, Any]:
    rows = [r for r in ROWS if r["question"] == "q33"]
    counts = Counter(str(r["outcome"]) for r in rows)
    return {
        "verdicts": rows,
        "machines": [{"id": "epyc-2core", "cores": 2, "records": {"q33": 12}}],
        "rules": [{"name": "difference_above", "text": "a - b is more than `margin`.", "uses": 2}],
        "plans": [{"question": "q33", "profiles": {"quick": {"expected": 4, "recorded": 4}}}],
        "status": {"machines": [{"id": "epyc-2core", "hours": 0.5, "pages": [STATUS]}], "lacking": [LACKING]},
        "counts": {"claims": 2, "questions": 1, "machines": 1, "records": 12, "judged": 1} | {o: counts[o] for o in theme.OUTCOME},
    }


def test_staging_mirrors_changes_only_and_removes_what_is_gone(repository: Path) -> None:
    mirror = repository / "_build" / "src"
    site.stage(repository / "notebooks", mirror, data(), repository)
    page = mirror / "book" / "intro.md"
    before = page.stat().st_mtime_ns
    (mirror / "stray").mkdir()
    (mirror / "stray" / "old.md").write_text("x")
    executed = repository / "executed"
    executed.mkdir()
    (executed / "q42_y.ipynb").write_text(notebook("# Q42 measured anew"))
    site.stage(executed, mirror, data(), repository)
    assert page.stat().st_mtime_ns == before
    assert not (mirror / "stray").exists()
    assert "anew" in (mirror / "notebooks" / "q42_y.ipynb").read_text()
    assert (mirror / "notebooks" / "q33_x.ipynb").read_text() == (repository / "notebooks" / "q33_x.ipynb").read_text()
    assert "--cnn-confirmed" in (mirror / "book" / "_static" / "outcomes.css").read_text()


def test_a_missing_notebook_is_refused(repository: Path) -> None:
    (repository / "notebooks" / "q42_y.ipynb").unlink()
    with pytest.raises(Refused, match=r"_toc.yml names q42_y.ipynb, which is neither in"):
        site.stage(repository / "notebooks", repository / "_build" / "src", data(), repository)


def test_what_all_pages_share_is_in_the_fingerprint(repository: Path) -> None:
    mirror = repository / "_build" / "src"
    site.stage(repository / "notebooks", mirror, data(), repository)
    first = site.fingerprint(mirror)
    (mirror / "notebooks" / "q42_y.ipynb").write_text(notebook("# Q42\n\nOther text."))
    assert site.fingerprint(mirror) == first
    (mirror / "notebooks" / "q42_y.ipynb").write_text(notebook("# Another title"))
    assert site.fingerprint(mirror) != first


@pytest.mark.slow
def test_the_site_builds_twice_alike_and_shows_outputs_as_agreed(repository: Path) -> None:
    """One build, one after an edit and its undoing, one afresh; then a page that Sphinx must object to."""

    def content(out: Path) -> dict[str, bytes]:
        return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}

    out = site.build(root=repository, data=data())
    first = content(out)
    page = first["notebooks/q33_x.html"].decode()
    assert f'alt="{ALT}"' in page
    figures = re.findall(r"<figure [^>]*>", page)
    assert ["cnn-rehearsal" in one for one in figures] == [False, True], "what is only rehearsed must not look like a result"
    assert re.search(
        r'<figcaption>\s*<p><span class="caption-number">Fig. 1 </span>.*Loss, 3 seeds; after .*He <em>et al.</em>', page, re.S
    )
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page and "tex-mml" not in page
    assert "\\u003c/script>" in page and "_static/vendor/vega.js" in page  # the chart's title cannot end the script
    assert first["_static/vendor/vega.js"] and "vega.js" not in first["notebooks/q42_y.html"].decode()
    assert b'href="../notebooks/q33_x.html#q33-two"' in first["book/board.html"]
    status = first["book/status.html"].decode()
    assert "3 of 4" in status and "measure 30 min 00 s, 1.2 GiB" in status and "1 of training (standard)" in status
    assert '<a href="../notebooks/q33_x.html#q33-three">It is &lt;so&gt;.</a>' in status
    assert b"thebe" not in first["book/intro.html"]
    other = repository / "notebooks" / "q42_y.ipynb"
    text = other.read_text()
    other.write_text(text.replace("From", "Onwards from"))
    assert b"Onwards from" in content(site.build(root=repository, data=data()))["notebooks/q42_y.html"]
    other.write_text(text)
    assert content(site.build(root=repository, data=data())) == first
    assert content(site.build(root=repository, data=data(), fresh=True)) == first

    other.write_text(text.replace("[](#q33)", "$\\\\nonsense$ and {numref}`fig-none`"))
    for _ in range(2):  # the second build must not forget what the first one objected to
        with pytest.raises(Refused, match=r"(?s)nonsense.*fig-none|fig-none.*nonsense"):
            site.build(root=repository, data=data())
    assert content(out) == first  # nothing half-built is published


# the check --------------------------------------------------------------------------------------------------------------

GOOD = '<html lang="en"><head><title>t</title></head><body>{}</body></html>'


def check(folder: Path, body: str) -> list[str]:
    (folder / "index.html").write_text(GOOD.format('<a href="page.html#here">x</a>'))
    (folder / "page.html").write_text(GOOD.format(f'<p id="here">{body}</p>'))
    return checks.check_site(folder)


def test_a_sound_site_passes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    sound = '<img src="a.png" alt="A line that falls."><img src="a.png" alt=""><a href="https://arxiv.org">x</a><code>{numref}`x`</code>'
    assert check(tmp_path, sound) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="gone.html">x</a>', "page.html: leads to no file: gone.html"),
        ('<a href="index.html#gone">x</a>', "page.html: leads to no such id: index.html#gone"),
        ('<a href="#gone">x</a>', "page.html: leads to no such id: #gone"),
        ('<i id="a"></i><i id="a"></i>', "page.html: id used 2 times: a"),
        ('<img src="index.html">', "page.html: picture without alternative text: …index.html"),
        ('<img src="index.html" alt="abc123.png">', "page.html: picture without alternative text: …index.html"),
        ('<script src="https://cdn.example/x.js"></script>', "page.html: would be fetched from elsewhere: https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "page.html: would be fetched from elsewhere: //fonts.example/x.css"),
        ('<p style="background: url(https://x.example/a.png)">', "page.html: would be fetched from elsewhere: https://x.example/a.png"),
        ("<style>@import 'https://x.example/a.css';</style>", "page.html: would be fetched from elsewhere: https://x.example/a.css"),
        ("see {numref}`fig-a`", "page.html: markup that was not read: {numref}`fig-a`"),
        (r"\begin{align} a \end{align}", "page.html: markup that was not read: \\begin{align}"),
    ],
)
def test_the_check_finds(tmp_path: Path, body: str, problem: str) -> None:
    assert check(tmp_path, body) == [problem]


def test_the_check_reads_style_sheets_and_refuses_what_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no built site at"):
        checks.check_site(tmp_path)
    (tmp_path / "x.css").write_text("@font-face { src: url('https://fonts.example/f.woff2') }")
    assert check(tmp_path, "") == ["x.css: would be fetched from elsewhere: https://fonts.example/f.woff2"]


def test_a_page_that_lags_behind_its_records_is_named(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "q33.html").write_text('<article class="cnn-verdict" id="q33-two" data-outcome="untested">')
    assert checks.disagreements(tmp_path, {"q33-two": "untested", "q03-one": "mixed"}) == []
    assert checks.disagreements(tmp_path, {"q33-two": "mixed"}) == ["q33-two: untested on its page, mixed on the board"]


def test_the_command_line_reports_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.main(["check", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("no built site at")
