"""The ledger, typed: what each question's claims say, and by which rules and margins they are judged.

``data/claims/q33.yaml`` is read with a safe YAML loader and checked field by field; whatever is wrong is refused in one
line that names file, line, claim and condition, and what would be valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from cnnstudy.config import Refused, choose
from cnnstudy.report import outcomes
from cnnstudy.report.conditions import check
from cnnstudy.report.outcomes import Expression
from cnnstudy.report.plan import PROFILES
from cnnstudy.report.published import TABLES
from cnnstudy.runtime import ROOT

EXPERIMENT_KINDS = ("exact", "hardware", "trained", "published")
CLAIM_KINDS = ("value", "mechanism", "trend", "ordering", "ratio", "advice")
EVIDENCE = ("exact", "hardware", "trained", "pretrained", "published", "argument")
LEDGER_FIELDS = ("question", "slug", "title", "part", "profiles", "experiments", "claims", "citations", "note")
EXPERIMENT_FIELDS = ("kind", "shows", "protocol", "exclusive", "needs", "table", "floor", "differences")
CLAIM_FIELDS = (
    "id", "statement", "kind", "evidence", "test", "conditions", *outcomes.OUTCOMES, "untested", "same_as", "note",
)  # fmt: skip
_ID = re.compile(r"q\d\d\.[a-z0-9][a-z0-9-]*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Experiment:
    """A named measurement.  ``needs``: the least profile that decides; ``table``: the name of a published one.

    ``floor``: the experiment that measured the machine against itself.  ``differences``: metrics that hang on the difference of
    two times, as ``{metric: (larger, difference)}`` with the metrics that hold the larger time and the difference.
    """

    name: str
    kind: str
    shows: str
    protocol: int = 1
    exclusive: bool = False
    needs: str = "quick"
    table: str | None = None
    floor: str | None = None
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One checkable statement, with its conditions (defaults filled in) and what their outcomes mean.

    ``written`` holds conditions and expressions as the ledger has them: what the digest of the rule is made of.
    """

    id: str
    statement: str
    kind: str
    evidence: tuple[str, ...]
    test: str
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expressions: Mapping[str, Expression] = field(default_factory=dict)
    untested: str | None = None
    same_as: str | None = None
    note: str | None = None
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def outcomes(self) -> dict[str, str]:
        """The text of each outcome's expression: ``{"confirmed": "a and b", ...}``."""
        return {name: expression.text for name, expression in self.expressions.items()}


@dataclass(frozen=True)
class Ledger:
    """The ledger of one question."""

    question: str
    slug: str
    title: str
    part: str
    profiles: Mapping[str, Mapping[str, Any]]
    experiments: Mapping[str, Experiment]
    claims: tuple[Claim, ...]
    citations: tuple[str, ...]
    note: str | None = None
    path: Path | None = None


def claims_root() -> Path:
    return ROOT / "data" / "claims"


def questions(root: Path | None = None) -> list[str]:
    """The questions that have a ledger: ``["q03", ...]``."""
    return sorted(p.stem for p in (root or claims_root()).glob("q[0-9][0-9].yaml"))


def load(question: str, root: Path | None = None) -> Ledger:
    """The ledger of a question.  Raises Refused for an unknown question or anything wrong in its file."""
    return load_file((root or claims_root()) / f"{choose('question', question, questions(root))}.yaml")


def load_file(path: Path) -> Ledger:
    """Read and check one ledger."""
    state = path.stat()
    return _loaded(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _loaded(path: Path, size: int, changed: int) -> Ledger:
    """A ledger, read once per state of its file; callers must not alter it."""
    return parse(path.read_text("utf-8"), path)


class Lines(dict[str, Any]):
    """A YAML mapping that knows the line where it begins."""

    line = 0


@cache
def _loader() -> type:
    """A safe loader that refuses a name given twice (YAML would drop the first) and reads 1e-4 as a number."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}

    def mapping(loader: Any, node: Any) -> Iterable[Lines]:
        names: set[str] = set()
        for key, _ in node.value:
            if key.value in names and key.value != "<<":
                raise Refused(f"{key.start_mark.line + 1}: {key.value!r} is given twice")
            names.add(key.value)
        made = Lines()
        made.line = node.start_mark.line + 1
        yield made
        loader.flatten_mapping(node)
        made.update(loader.construct_mapping(node))

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def parse(text: str, path: Path) -> Ledger:
    """Check the text of a ledger; ``path`` names it in errors."""
    try:
        body = yaml.load(text, _loader())
    except Refused as error:
        raise Refused(f"{path.name}:{error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise Refused(f"{path.name}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(body, dict):
        raise Refused(f"{path.name}: a ledger is a mapping of {', '.join(LEDGER_FIELDS)}")
    checker = _Checker(path)
    return checker.inside(body, "", partial(checker.ledger, body))  # type: ignore[no-any-return]


class _Checker:
    """Checks one ledger; every error begins with its file and line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inside(self, body: Any, where: str, work: Callable[[], Any]) -> Any:
        """Do a piece of work; an error of it gets the file, the line and the place."""
        line = f":{body.line}" if isinstance(body, Lines) else ""
        try:
            return work()
        except Refused as error:
            known = str(error).startswith(self.path.name)
            raise Refused(str(error) if known else f"{self.path.name}{line}: {where}{error}") from None

    def fields(self, body: Any, what: str, valid: Iterable[str], required: Iterable[str] = ()) -> None:
        if not isinstance(body, dict):
            raise Refused(f"{what} is {body!r}; expected a mapping")
        for name in body:
            choose(f"field of {what}", name, valid)
        for name in required:
            if body.get(name) in (None, "", [], {}):
                raise Refused(f"{what} lacks its {name!r}")

    def text(self, body: Mapping[str, Any], name: str) -> str | None:
        value = body.get(name)
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise Refused(f"{name} is {value!r}; expected text")
        return None if value is None else " ".join(value.split())

    def ledger(self, body: Mapping[str, Any]) -> Ledger:
        self.fields(body, "the ledger", LEDGER_FIELDS, ("question", "slug", "title", "part", "profiles", "experiments", "claims"))
        number = body["question"]
        question = f"q{number:02d}" if type(number) is int else str(number)
        if question != self.path.stem:
            raise Refused(f"question is {number!r} in the file of {self.path.stem}")
        profiles = self.profiles(body["profiles"])
        if not isinstance(body["experiments"], dict):
            raise Refused("experiments is a list; expected a mapping of name: {kind, shows}")
        experiments = {
            name: self.inside(spec, f"experiment {name}: ", partial(self.experiment, name, spec))
            for name, spec in body["experiments"].items()
        }
        for name, spec in experiments.items():
            self.inside(body["experiments"][name], f"experiment {name}: ", partial(self.floor, spec, experiments))
        if not isinstance(body["claims"], list):
            raise Refused("claims is not a list")
        claims: dict[str, Claim] = {}
        for raw in body["claims"]:
            name = raw.get("id", "a claim") if isinstance(raw, dict) else "a claim"
            claim = self.inside(raw, f"{name}: ", partial(self.claim, raw, question, experiments, claims))
            claims[claim.id] = claim
        citations = body.get("citations", [])
        if not isinstance(citations, list) or not all(isinstance(c, str) for c in citations):
            raise Refused("citations is not a list of texts")
        slug, title, part = (str(self.text(body, n)) for n in ("slug", "title", "part"))
        every = tuple(claims.values())
        return Ledger(question, slug, title, part, profiles, experiments, every, tuple(citations), self.text(body, "note"), self.path)

    def profiles(self, body: Any) -> dict[str, dict[str, Any]]:
        self.fields(body, "profiles", PROFILES)
        for name in PROFILES:
            if not isinstance(body.get(name), dict):
                raise Refused(f"profiles lacks {name!r}, a mapping of parameters (may be {{}})")
        for name in PROFILES[1:]:
            odd = sorted(body[name].keys() ^ body["quick"].keys())
            if odd:
                raise Refused(f"profile {name!r}: parameter {odd[0]!r} is not in both {name!r} and 'quick'; all profiles name the same")
        return {name: dict(body[name]) for name in PROFILES}

    def experiment(self, name: str, body: Any) -> Experiment:
        self.fields(body, f"experiment {name}", EXPERIMENT_FIELDS, ("kind", "shows"))
        kind = choose("experiment kind", body["kind"], EXPERIMENT_KINDS)
        needs = choose("profile", body.get("needs", "standard" if kind == "trained" else "quick"), PROFILES)
        protocol = body.get("protocol", 1)
        if type(protocol) is not int or protocol < 1:
            raise Refused(f"protocol is {protocol!r}; expected 1, 2, ...")
        if kind == "published":
            choose("published table", body.get("table"), TABLES)
        elif "table" in body:
            raise Refused(f"table is for experiments of kind published, this one is {kind}")
        if not isinstance(body.get("exclusive", False), bool):
            raise Refused(f"exclusive is {body['exclusive']!r}; expected true or false")
        differences = body.get("differences", {})
        self.fields(differences, "differences", differences)
        for metric, parts in differences.items():
            self.fields(parts, f"differences of {metric}", ("larger", "difference"), ("larger", "difference"))
        return Experiment(
            name, kind, str(self.text(body, "shows")), protocol, body.get("exclusive", False), needs, body.get("table"),
            self.text(body, "floor"), {m: (str(p["larger"]), str(p["difference"])) for m, p in differences.items()},
        )  # fmt: skip

    def floor(self, experiment: Experiment, experiments: Mapping[str, Experiment]) -> None:
        """The noise floor that an experiment names is one that is measured here, of the machine, and has none itself."""
        if experiment.differences and experiment.floor is None:
            raise Refused("differences say how a noise floor grows; this experiment names no floor")
        if experiment.floor is None:
            return
        named = experiments[choose("experiment as floor", experiment.floor, experiments)]
        if experiment.kind != "hardware" or named.kind != "hardware" or named.floor is not None:
            raise Refused(f"floor is {named.name!r}; expected, for an experiment of kind hardware, another of that kind without a floor")

    def claim(self, body: Any, question: str, experiments: Mapping[str, Experiment], before: Mapping[str, Claim]) -> Claim:
        self.fields(body, "a claim", CLAIM_FIELDS, ("id", "statement", "kind", "evidence", "test"))
        name = str(body["id"])
        if not _ID.fullmatch(name) or not name.startswith(f"{question}."):
            raise Refused(f"id {name!r} does not match its question; expected {question}.lower-case-words")
        if name in before:
            raise Refused("this id is given twice")
        if "same_as" in body and not _ID.fullmatch(str(body["same_as"])):
            raise Refused(f"same_as is {body['same_as']!r}; expected the id of a claim")
        choose("claim kind", body["kind"], CLAIM_KINDS)
        evidence = body["evidence"] if isinstance(body["evidence"], list) else [body["evidence"]]
        for word in evidence:
            choose("evidence", word, EVIDENCE)
        conditions: dict[str, Mapping[str, Any]] = {}
        if "untested" in body:
            odd = [f for f in ("conditions", *outcomes.OUTCOMES) if f in body]
            if odd:
                raise Refused(f"untested claims have no {odd[0]!r}; either give rules or say why none could decide it")
            expressions: dict[str, Expression] = {}
        else:
            given = body.get("conditions")
            if not isinstance(given, dict) or not given:
                raise Refused("a claim needs conditions, or untested: <why no profile of ours could ever decide it>")
            for label, condition in given.items():
                if not isinstance(label, str) or not _NAME.fullmatch(label) or label in outcomes.RESERVED:
                    raise Refused(
                        f"condition name {label!r}: expected a word (letters, digits, - and _) other than {', '.join(outcomes.RESERVED)}"
                    )
                place = f"{name}: condition {label}: "
                conditions[label] = self.inside(condition, place, partial(check, condition, experiments))
            expressions = self.expressions(body, conditions)
        return Claim(
            name, str(self.text(body, "statement")), body["kind"], tuple(evidence), str(self.text(body, "test")), conditions,
            expressions, self.text(body, "untested"), body.get("same_as"), self.text(body, "note"),
            {f: body[f] for f in ("conditions", *outcomes.OUTCOMES) if f in body},
        )  # fmt: skip

    def expressions(self, body: Lines, conditions: Mapping[str, Any]) -> dict[str, Expression]:
        for name in ("confirmed", "refuted"):
            if name not in body:
                raise Refused(f"lacks its {name!r}: a claim must be able to come out either way")
        found = {}
        for name in outcomes.OUTCOMES:
            if name in body:
                found[name] = self.inside(None, f"{body['id']}: {name}: ", partial(outcomes.parse, body[name]))
                for used in found[name].names:
                    choose(f"condition in {name!r}", used, conditions)
        for name in conditions:
            if not any(name in e.names for e in found.values()):
                raise Refused(f"condition {name!r} is never used in {', '.join(found)}")
        possible = outcomes.reachable(found, conditions)
        for name in ("confirmed", "refuted"):
            if name not in possible:
                raise Refused(f"no combination of its conditions can make it {name}")
        return found
