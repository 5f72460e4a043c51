"""Taps: look at what flows through a network's modules.  The only file that registers hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect the first input of each module during forward passes inside the block, by name (the latest call)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0]

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect the output of each module during forward passes inside the block, by name (the latest call)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: object, result: Tensor) -> None:
            seen[name] = result

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
