"""environment.yml (conda), pyproject.toml (PyPI) and constraints.txt name the same packages with the same ranges."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONDA_TO_PYPI = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # the only names that differ
ONLY_CONDA = {"python", "pip"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pypi() -> dict[str, SpecifierSet]:
    lines = [*project()["dependencies"], *(r for extra in project()["optional-dependencies"].values() for r in extra)]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in requirements if r.name != project()["name"]}


def conda() -> dict[str, SpecifierSet]:
    found = {}
    for item in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]:
        if isinstance(item, str):
            name, _, specifier = item.partition(" ")
            if name not in ONLY_CONDA:
                found[canonicalize_name(CONDA_TO_PYPI.get(name, name))] = SpecifierSet(specifier)
    return found


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line := line.partition("#")[0].strip():
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def test_same_packages_and_ranges() -> None:
    assert conda() == pypi()


def test_same_python() -> None:
    assert f"python {project()['requires-python']}" in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def test_every_package_is_pinned_within_its_range() -> None:
    pinned = pins()
    for name, specifier in pypi().items():
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert specifier.contains(pinned[name]), f"{name}: {pinned[name]} is outside {specifier}"


def test_torch_is_pinned_without_a_build_suffix() -> None:
    assert "+" not in pins()["torch"]


def test_everything_imported_is_declared() -> None:
    """What the package imports stands in pyproject.toml: a dependency of a dependency may vanish."""
    import ast
    import sys

    import_names = {
        "pillow": "PIL",
        "pyyaml": "yaml",
        "vl-convert-python": "vl_convert",
        "papermill": "papermill",
        "jupyter-book": "jupyter_book",
    }
    declared = {import_names.get(n, n.replace("-", "_")) for n in pypi()} | {"cnnstudy"}
    allowed = {"IPython", "traitlets", "sphinx", "docutils", "myst_nb"}  # come with ipykernel and jupyter-book, whose parts they are
    for path in (ROOT / "cnnstudy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            for name in names:
                top = (name or "").split(".")[0]
                assert top in declared | allowed | set(sys.stdlib_module_names), f"{path.name} imports {top}"
