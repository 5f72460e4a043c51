"""Which code made a number: a digest of a trial and of every cnnstudy module that it leads to.

Comments, docstrings and spacing do not count, so that explaining code better does not make its records stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from cnnstudy.config import Setup, digest, kind

PACKAGE = "cnnstudy"
HOME = Path(__file__).resolve().parents[1]
# Not counted: the table of models (the configs in a setup name their own modules, so that a new model leaves the records
# of all others as they are), and what only moves bytes that are hashed afterwards.
OUTSIDE = frozenset({"cnnstudy", "cnnstudy.models", "cnnstudy.fetch", "cnnstudy.archives", "cnnstudy.weights"})


def essence(text: str) -> str:
    """What source means: its syntax tree, written down without docstrings, positions and empty fields.

    Comments, spacing, line breaks and the version of Python that reads it do not show; every other change does.
    """
    return _written(ast.parse(textwrap.dedent(text)))


def _written(node: Any) -> str:
    if isinstance(node, list):
        return f"[{','.join(_written(item) for item in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
        fields["body"] = fields["body"][1:]
    kept = [f"{name}={_written(value)}" for name, value in fields.items() if value is not None and value != []]
    return f"{type(node).__name__}({','.join(kept)})"


def module_file(module: str) -> Path | None:
    """The file of a module of this package, or None."""
    path = HOME.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The cnnstudy modules that a module imports anywhere in it."""
    path = module_file(module)
    if path is None:
        return ()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found.update(name for name in names if name.split(".")[0] == PACKAGE and module_file(name))
    return tuple(sorted(found - {module}))


def closure(modules: Iterable[str]) -> list[str]:
    """The modules and all that they import, transitively, within the package."""
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in seen | OUTSIDE and module_file(module):
            seen.add(module)
            todo.extend(_imports(module))
    return sorted(seen)


@cache
def _essence_of(module: str) -> str:
    path = module_file(module)
    return essence(path.read_text("utf-8")) if path else ""


def modules_of(trial: Callable[..., Any]) -> list[str]:
    """The cnnstudy modules that a trial names, also through functions defined beside it in the notebook."""
    found: set[str] = set()
    for function in _with_neighbours(trial):
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            module = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            if isinstance(module, str) and module.split(".")[0] == PACKAGE and not module.startswith(f"{PACKAGE}.report"):
                found.add(module)
    return sorted(found - OUTSIDE)


def config_modules(setup: Setup) -> dict[str, str]:
    """The module of each kind of config in a setup: ``{"ResNet": "cnnstudy.models.resnet"}``."""
    found: dict[str, str] = {}
    todo: list[Any] = list(setup.parts.values())
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo.extend(part)
        elif dataclasses.is_dataclass(part):
            found[kind(part)] = type(part).__module__
            todo.extend(getattr(part, field.name) for field in dataclasses.fields(part))
    return dict(sorted(found.items()))


def _names(code: Any) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names |= _names(constant)
    return names


def _with_neighbours(trial: Callable[..., Any]) -> list[Any]:
    """The trial and the functions of its own namespace that it calls, transitively."""
    functions, todo = [], [inspect.unwrap(trial)]
    while todo:
        function: Any = todo.pop()
        if function in functions or not inspect.isfunction(function):
            continue
        functions.append(function)
        for name in sorted(_names(function.__code__)):
            value = function.__globals__.get(name)
            if inspect.isfunction(value) and value.__module__ == function.__module__:
                todo.append(value)
    return functions


def trial_digest(trial: Callable[..., Any]) -> str:
    """The digest of the essence of a trial and of its neighbours' source."""
    functions = sorted(_with_neighbours(trial), key=lambda f: f.__qualname__)
    return digest([essence(inspect.getsource(function)) for function in functions])


def code_digest(trial: str, modules: Iterable[str]) -> str:
    """The digest stored in a record: of the trial (its own digest) and of every module behind it."""
    return _code_digest(trial, tuple(closure(modules)))


@cache
def _code_digest(trial: str, modules: tuple[str, ...]) -> str:
    return digest([trial, [[name, _essence_of(name)] for name in modules]])
