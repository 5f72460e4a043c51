"""The layering of the package: imports point downwards, the bench knows no questions, the report no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cnnstudy"

# The lower a room stands here, the less it may import; rooms on one line do not import each other.
BENCH = [
    {"cnnstudy.config"},
    {"cnnstudy.stats", "cnnstudy.runtime", "cnnstudy.archives", "cnnstudy.weights"},
    {"cnnstudy.source", "cnnstudy.fetch", "cnnstudy.load"},
    {"cnnstudy.data", "cnnstudy.layers", "cnnstudy.timing"},
    {"cnnstudy.models", "cnnstudy.noise"},
    {"cnnstudy.probes", "cnnstudy.networks"},
    {"cnnstudy.train", "cnnstudy.attacks", "cnnstudy.compress", "cnnstudy.engines", "cnnstudy.roofline", "cnnstudy.profiles"},
    {"cnnstudy.hooks", "cnnstudy.defences", "cnnstudy.stopwatch", "cnnstudy.pilot"},
    {
        "cnnstudy.blocks", "cnnstudy.sitting", "cnnstudy.pool", "cnnstudy.updates", "cnnstudy.matched", "cnnstudy.pace",
        "cnnstudy.identity", "cnnstudy.budgets",
    },
    {"cnnstudy.rates", "cnnstudy.preactivation", "cnnstudy.starts", "cnnstudy.placement"},
]
FOUNDATION = {
    "cnnstudy.config", "cnnstudy.stats", "cnnstudy.runtime", "cnnstudy.source", "cnnstudy.fetch", "cnnstudy.archives", "cnnstudy.load",
}  # fmt: skip
HEAVY = {"torch", "torchvision", "timm", "onnxruntime", "onnx"}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


def imports(tree: ast.Module, top_level: bool = False) -> set[str]:
    """Imported modules; with ``top_level`` only those that importing the module itself imports (TYPE_CHECKING left out)."""
    names: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "relative import"
                names.add(child.module or "")
                names.update(f"{child.module}.{alias.name}" for alias in child.names)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if checking or (top_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))):
                continue
            todo.append(child)
    return names


MODULES = modules()


def room(name: str) -> str:
    """The room that a module belongs to: ``cnnstudy.models.resnet`` -> ``cnnstudy.models``."""
    return ".".join(name.split(".")[:2])


def height(name: str) -> int | None:
    return next((i for i, level in enumerate(BENCH) if room(name) in level), None)


def inside(names: set[str]) -> set[str]:
    return {n for n in names if n in MODULES and n != "cnnstudy"}


@pytest.mark.parametrize("name", [n for n in MODULES if n != "cnnstudy"])
def test_imports_point_downwards(name: str) -> None:
    used = inside(imports(MODULES[name]))
    if room(name) == "cnnstudy.report" or name == "cnnstudy.cli":
        bench = {u for u in used if room(u) not in FOUNDATION | {"cnnstudy.report"}}
        assert not bench, f"the report imports the bench: {bench}"
        return
    assert height(name) is not None, f"{name} is in no room; add it to BENCH in this test and to the design"
    for other in used:
        assert room(other) != "cnnstudy.report", f"the bench imports the report: {other}"
        if room(other) != room(name):
            above = height(other)
            assert above is not None and above < (height(name) or 0), f"{name} imports {other}, which does not stand below it"


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) in FOUNDATION | {"cnnstudy.report", "cnnstudy.cli", "cnnstudy"}])
def test_foundation_and_report_import_no_torch(name: str) -> None:
    heavy = {n.split(".")[0] for n in imports(MODULES[name], top_level=room(name) in FOUNDATION)} & HEAVY
    assert not heavy


def test_the_command_line_leaves_torch_alone() -> None:
    code = "import sys, cnnstudy.cli, cnnstudy.report.study; print(sorted({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_only_taps_registers_hooks() -> None:
    for name, tree in MODULES.items():
        calls = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        if any(call.startswith("register_") and "hook" in call for call in calls):
            assert name == "cnnstudy.probes.taps"


def test_no_module_outgrows_one_sitting() -> None:
    long = {
        n: len((ROOT / (n.replace(".", "/") + ".py")).read_text().splitlines())
        for n in MODULES
        if (ROOT / (n.replace(".", "/") + ".py")).exists()
    }
    assert {n: lines for n, lines in long.items() if lines > 330} == {}


def test_no_catch_all_rooms() -> None:
    assert not {n for n in MODULES if n.split(".")[-1] in ("utils", "common", "helpers", "base", "misc")}
