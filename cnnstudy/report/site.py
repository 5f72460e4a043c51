"""The static site: mirror the repository for Sphinx, gather what the pages quote, build, check, publish.

``python -m cnnstudy.report.site build`` writes ``_build/site``.  Page names are repository paths, so that edit, download,
Colab and Binder links come out right; Sphinx therefore reads a mirror (``_build/src``), in which the notebooks may be
those of a rebuild.  Nothing is measured or executed here, and nothing is published that did not pass the check.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cnnstudy.config import Refused, choose
from cnnstudy.report import checks, evidence, pages, plan, status, theme
from cnnstudy.runtime import ROOT, machine_id

CONFIGURATION = ("_config.yml", "_toc.yml")


# what the prose pages quote ---------------------------------------------------------------------------------------------


def chapters(toc: Path) -> dict[str, tuple[str, str]]:
    """The notebooks of the table of contents: ``{"q33": ("Training", "q33_....ipynb")}``, the part's caption first."""
    contents = yaml.safe_load(toc.read_text("utf-8"))
    found = {}
    for part in contents.get("parts", ()):
        for chapter in part.get("chapters", ()):
            folder, _, name = str(chapter.get("file", "")).rpartition("/")
            if folder == "notebooks":
                found[name.partition("_")[0]] = (str(part["caption"]), f"{name}.ipynb")
    return found


def verdict_rows(toc: Path, machine: str = "reference") -> list[dict[str, Any]]:
    """One row per claim of the book's questions, with the part under which a reader finds it in the sidebar.

    ``machine``: "reference" (the book's records) or "this" (what a rebuild measured here).
    """
    from cnnstudy.report import verdicts

    known = chapters(toc)
    machines = [machine_id()] if choose("machine", machine, ("reference", "this")) == "this" else None
    return [row | {"part": known[row["question"]][0]} for row in verdicts.rows(known, machines)]


def machine_entries() -> list[dict[str, Any]]:
    """The machines that have records: their description, the software that measured, and records by question."""
    entries = []
    for machine in evidence.reference():
        path = evidence.store_root() / machine / "machine.json"
        records = evidence.read(machine)
        made = [record.get("provenance") or {} for record in records]
        software = {key: ", ".join(sorted({str(p[key]) for p in made if p.get(key)})) for key in ("python", "torch")}
        described = json.loads(path.read_text("utf-8")) if path.exists() else {}
        counts = Counter(str(record["question"]) for record in records)
        entries.append(software | described | {"id": machine, "records": dict(sorted(counts.items()))})
    return entries


def rule_entries(questions: Iterable[str]) -> list[dict[str, Any]]:
    """The rules: name, what each asks, and how many conditions of the questions' ledgers use it."""
    from cnnstudy.report import claims, rules

    conditions = [c for question in questions for claim in claims.load(question).claims for c in claim.conditions.values()]
    uses = Counter(str(condition["rule"]) for condition in conditions)
    return [{"name": name, "text": inspect.getdoc(rule) or "", "uses": uses[name]} for name, rule in rules.RULES.items()]


def plan_entries(questions: Iterable[str]) -> list[dict[str, Any]]:
    """Per question and profile: measurements planned, and how many of those have a record on any machine."""
    have = {str(record["key"]) for machine in evidence.machines() for record in evidence.read(machine)}
    entries = []
    for question in questions:
        counts = {}
        for profile in plan.PROFILES:
            keys = {entry["key"] for one in plan.load(question).values() for entry in one.entries(profile)}
            if keys:
                counts[profile] = {"expected": len(keys), "recorded": len(keys & have)}
        entries.append({"question": question, "profiles": counts})
    return entries


def gather(toc: Path, machine: str = "reference") -> dict[str, Any]:
    """Everything that the prose pages quote, by file name."""
    rows = verdict_rows(toc, machine)
    questions = sorted({str(row["question"]) for row in rows})
    machines = machine_entries()
    outcomes = Counter(str(row["outcome"]) for row in rows)
    counts = {
        "claims": len(rows),
        "questions": len(questions),
        "machines": len(machines),
        "records": sum(sum(machine["records"].values()) for machine in machines),
        "judged": len(rows) - outcomes["untested"],
        **{outcome: outcomes[outcome] for outcome in theme.OUTCOME},
    }
    return {
        "verdicts": rows,
        "machines": machines,
        "rules": rule_entries(questions),
        "plans": plan_entries(questions),
        "status": status.entries(questions, machine),
        "counts": counts,
    }


# the mirror -------------------------------------------------------------------------------------------------------------


def stage(notebooks: Path, target: Path, data: Mapping[str, Any], root: Path = ROOT) -> None:
    """Make ``target`` the mirror that Sphinx reads; files whose content is the same are left alone.

    Args:
        notebooks: folder of executed ``q*.ipynb``; where one is missing there, the committed one is taken.
        target: folder of the mirror; what does not belong there is removed.
        data: what the prose pages quote, by file name, as :func:`gather` gives it.
        root: the repository.

    Raises:
        Refused: a notebook of the table of contents is in neither folder.
    """
    wanted: dict[Path, bytes] = {Path(name): (root / name).read_bytes() for name in CONFIGURATION}
    wanted |= {path.relative_to(root): path.read_bytes() for path in sorted((root / "book").rglob("*")) if path.is_file()}
    for _, name in chapters(root / "_toc.yml").values():
        path = next((p for p in (notebooks / name, root / "notebooks" / name) if p.exists()), None)
        if path is None:
            raise Refused(f"_toc.yml names {name}, which is neither in {notebooks} nor in notebooks/")
        wanted[Path("notebooks") / name] = path.read_bytes()
    wanted |= {Path("data") / f"{name}.json": _json(value) for name, value in data.items()}
    wanted[Path("book/_static/outcomes.css")] = theme.css().encode()
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(target) not in wanted:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for relative, content in wanted.items():
        path = target / relative
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _titles(mirror: Path) -> list[str]:
    """The first heading of each page: it stands in the sidebar of all other pages."""
    found = []
    for path in sorted(mirror.rglob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        found.append(next((line for line in text.splitlines() if line.startswith("# ")), ""))
    return found


def fingerprint(mirror: Path) -> str:
    """What all pages depend on: where it changes, Sphinx must write every page anew, and does not know it."""
    here = Path(__file__).parent
    shared = [mirror / name for name in CONFIGURATION] + sorted((mirror / "book" / "_static").rglob("*"))
    digest = hashlib.sha256("\n".join(_titles(mirror)).encode())
    for path in [*shared, *(here / name for name in ("sphinxext.py", "pages.py", "overview.py"))]:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


# building ---------------------------------------------------------------------------------------------------------------


def build(
    notebooks: Path | None = None,
    out: Path | None = None,
    fresh: bool = False,
    root: Path = ROOT,
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Build, check and publish the site; the folder with its ``index.html`` is returned.

    Only changed pages are written, unless something that all pages share has changed or ``fresh`` is given.

    Raises:
        Refused: Sphinx warned, or the check found something; the site of before is left as it was.
    """
    mirror, work = root / "_build" / "src", root / "_build" / "sphinx"
    out = out or root / "_build" / "site"
    data = data if data is not None else gather(root / "_toc.yml")
    stage(notebooks or root / "notebooks", mirror, data, root)
    stamp, mark = work / "fingerprint", fingerprint(mirror)
    if fresh or not stamp.exists() or stamp.read_text() != mark:
        shutil.rmtree(work, ignore_errors=True)
    stamp.unlink(missing_ok=True)  # stands again after a success only: a warning must not be forgotten by the next build
    work.mkdir(parents=True, exist_ok=True)
    _sphinx(mirror, work)
    html = work / "_build" / "html"
    _drop_old_pictures(html)
    problems = checks.check_site(html)
    if problems:
        shown = "\n  ".join(problems[:40]) + (f"\n  and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise Refused(f"the site has {len(problems)} problem(s):\n  {shown}")
    for line in checks.disagreements(html, {pages.anchor(row["id"]): row["outcome"] for row in data["verdicts"]}):
        print(f"note: {line}; draw the page again from the records", file=sys.stderr)
    _publish(html, out)
    stamp.write_text(mark)
    return out


def _sphinx(mirror: Path, work: Path) -> None:
    """Run jupyter-book; every warning is an error, and all of them are shown."""
    script = "import sys; from jupyter_book.cli.main import main; main(sys.argv[1:])"
    options = [str(mirror), "--path-output", str(work), "-W", "--keep-going", "-q"]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", script, "build", *options], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = [line.replace(f"{mirror}/", "") for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        warnings = [line for line in said if "WARNING" in line or "ERROR" in line]
        raise Refused("jupyter-book found something to object to:\n  " + "\n  ".join((warnings or said)[-40:]))


def _drop_old_pictures(html: Path) -> None:
    """Sphinx keeps the pictures of earlier builds; without them an incremental build is the same as a fresh one."""
    used = "".join(page.read_text("utf-8") for page in html.rglob("*.html"))
    for path in (html / "_images").glob("*.png"):
        if path.name not in used:
            path.unlink()


def _publish(html: Path, out: Path) -> None:
    """Put the built pages in ``out`` by renaming: a reader never meets a half-written site."""
    fresh, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(html, fresh, ignore=shutil.ignore_patterns(".buildinfo*"))
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """``build`` or ``check``; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m cnnstudy.report.site", description="Build or check the book's site.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="build, check and publish the site")
    make.add_argument("--notebooks", type=Path, help="folder of executed notebooks (default: notebooks/, as committed)")
    make.add_argument("--out", type=Path, help="where the site goes (default: _build/site)")
    make.add_argument("--machine", default="reference", help="whose records the verdict board is judged from: reference or this")
    make.add_argument("--fresh", action="store_true", help="write every page anew")
    check = commands.add_parser("check", help="check the links, ids, pictures and addresses of a built site")
    check.add_argument("folder", type=Path, nargs="?", default=ROOT / "_build" / "site")
    given = parser.parse_args(arguments)
    try:
        if given.command == "check":
            problems = checks.check_site(given.folder)
            print("\n".join(problems) or f"{given.folder}: nothing to object to")
            return int(bool(problems))
        data = gather(ROOT / "_toc.yml", given.machine)
        print(f"The site is at {build(given.notebooks, given.out, given.fresh, data=data) / 'index.html'}")
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
