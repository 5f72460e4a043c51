"""Setups: what decides a measured number, written one way only, so that it can be hashed.

A *config* is a frozen dataclass of JSON scalars that stands beside the thing it configures
(``ResNetConfig``, ``Recipe``, ...).  A :class:`Setup` holds named configs and scalars.  Both have one
canonical JSON form; its hash, with the experiment, the seed and the protocol, is a record's key.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

KEY_LENGTH = 12  # 48 bits: at a million records the odds of one collision are about 1 in 500


class Refused(ValueError):
    """Input that is refused, with one line that names what was given and what is valid."""


def choose(what: str, given: Any, valid: Iterable[Any]) -> Any:
    """Return ``given`` if it is one of ``valid``; refuse it otherwise, naming the valid ones."""
    names = list(valid)
    if given in names:
        return given
    close = difflib.get_close_matches(str(given), [str(n) for n in names], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise Refused(f"unknown {what} {given!r}{hint}; valid: {', '.join(str(n) for n in names) or 'none'}")


def _scalar(value: Any, where: str) -> Any:
    """A JSON scalar in its one form: integral floats and ints agree, NaN and NumPy scalars are refused."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) in (int, float):
        if isinstance(value, float):
            if not math.isfinite(value):
                raise Refused(f"{where} is {value}; a setup holds finite numbers only")
            return int(value) if value.is_integer() else value
        return value
    raise Refused(f"{where} is a {type(value).__name__}; a setup holds int, float, bool, str or a config")


def _coerce(value: Any, annotation: Any, where: str) -> Any:
    """``value`` in the canonical form of its annotated type."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (annotation,) = (a for a in args if a is not type(None))
        return _coerce(value, annotation, where)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise Refused(f"{where} is a {type(value).__name__}; expected a list")
        return [_coerce(v, args[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if dataclasses.is_dataclass(annotation):
        return canonical(value)
    value = _scalar(value, where)
    if annotation is bool and not isinstance(value, bool):
        raise Refused(f"{where} is {value!r}; expected true or false")
    if annotation in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise Refused(f"{where} is {value!r}; expected a number")
    if annotation is int and not isinstance(value, int):
        raise Refused(f"{where} is {value!r}; expected a whole number")
    if annotation is str and not isinstance(value, str):
        raise Refused(f"{where} is {value!r}; expected text")
    return value


@cache
def _annotations(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def kind(config: Any) -> str:
    """The name under which a config's class is written: ``ResNet`` for ``ResNetConfig``."""
    return type(config).__name__.removesuffix("Config")


def canonical(value: Any, where: str = "setup") -> Any:
    """The one JSON form of a setup, a config, a scalar, or a list of those.

    Defaults are included; a field whose value equals its ``metadata["neutral"]`` is left out, so that a
    field added later keeps the keys of the past.  Raises Refused for tuples, NumPy scalars, NaN.
    """
    if isinstance(value, Setup):
        return {name: canonical(part, name) for name, part in sorted(value.parts.items())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        types_ = _annotations(type(value))
        out: dict[str, Any] = {"kind": kind(value)}
        for field in dataclasses.fields(value):
            item = _coerce(getattr(value, field.name), types_[field.name], f"{where}.{field.name}")
            if "neutral" not in field.metadata or item != field.metadata["neutral"]:
                out[field.name] = item
        return out
    if isinstance(value, list):
        return [canonical(v, f"{where}[{i}]") for i, v in enumerate(value)]
    return _scalar(value, where)


def flatten(form: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"depth": 20}}`` -> ``{"model.depth": 20}``; lists stay values."""
    flat: dict[str, Any] = {}
    for name, value in form.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def digest(form: Any, length: int = KEY_LENGTH) -> str:
    """The first ``length`` hex digits of the sha256 of a JSON value, independent of the order of names."""
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def key(experiment: str, setup: Setup | Mapping[str, Any], seed: int, protocol: int = 1) -> str:
    """A record's key: 12 hex digits of experiment, canonical setup, seed and protocol."""
    form = canonical(setup) if isinstance(setup, Setup) else dict(setup)
    return digest([experiment, form, int(seed), int(protocol)])


class Setup:
    """Everything that decides a number, and nothing else: named configs, scalars, or lists of those.

    >>> setup = Setup(model=ResNetConfig(depth=20), images=2000)
    >>> setup.model.depth, setup.replace({"model.depth": 56}).model.depth
    (20, 56)
    """

    __slots__ = ("parts",)
    parts: Mapping[str, Any]

    def __init__(self, **parts: Any) -> None:
        object.__setattr__(self, "parts", types.MappingProxyType(dict(parts)))
        canonical(self)  # refuse what can't be hashed where it is made, not where it is stored

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.parts[choose("part of this setup", name, self.parts)]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a setup is immutable; use replace()")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (dict(self.parts),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setup) and canonical(self) == canonical(other)

    def __hash__(self) -> int:
        return hash(digest(canonical(self)))

    def __repr__(self) -> str:
        return f"Setup({', '.join(f'{k}={v!r}' for k, v in self.parts.items())})"

    def replace(self, changes: Mapping[str, Any]) -> Setup:
        """A copy with the dotted paths in ``changes`` set.  Unknown paths are refused with the valid ones."""
        parts = dict(self.parts)
        for path, value in changes.items():
            head, _, rest = path.partition(".")
            choose("part of this setup", head, parts)
            parts[head] = _replace(parts[head], rest, value, path) if rest else value
        return Setup(**parts)


def _rebuild(parts: dict[str, Any]) -> Setup:
    return Setup(**parts)


def _replace(config: Any, rest: str, value: Any, path: str) -> Any:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise Refused(f"{path}: {path.removesuffix('.' + rest)} is not a config, it has no field {rest!r}")
    name, _, deeper = rest.partition(".")
    choose(f"field of {type(config).__name__}", name, [f.name for f in dataclasses.fields(config)])
    inner = _replace(getattr(config, name), deeper, value, path) if deeper else value
    if not deeper:
        _coerce(inner, _annotations(type(config))[name], path)  # refuse a wrong type before the config's own checks meet it
    if isinstance(inner, list):  # JSON has lists where a frozen config has tuples
        inner = tuple(inner)
    return dataclasses.replace(config, **{name: inner})


def grid(base: Setup, axes: Mapping[str | tuple[str, ...], Sequence[Any]]) -> list[Setup]:
    """All combinations of the values on ``axes``, the first axis slowest.

    An axis is a dotted path with its values, or a tuple of paths with tuples of values that vary together.
    """
    setups = []
    for combination in itertools.product(*axes.values()):
        changes: dict[str, Any] = {}
        for axis, value in zip(axes, combination, strict=True):
            changes.update(zip(axis, value, strict=True) if isinstance(axis, tuple) else [(axis, value)])
        setups.append(base.replace(changes))
    return setups
