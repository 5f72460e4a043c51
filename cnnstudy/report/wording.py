"""Numbers and metrics in plain words, as they stand in the sentence of a finding."""

from __future__ import annotations

import math

_WORDS = {
    "acc": "accuracy", "val": "validation", "params": "parameters", "macs": "MACs", "flops": "FLOPs", "grad": "gradient",
    "ms": "", "mb": "", "seconds": "", "adv": "adversarial", "std": "standard deviation", "p50": "median",
}  # fmt: skip
_UNITS = {"_ms": "ms", "_seconds": "s", "_mb": "MB", "_gb": "GB", "_px": "px"}
_COUNTS = ("params", "macs", "flops", "activations", "operations", "parameters")
_SHARES = ("acc", "accuracy", "share", "top1", "top5")


def plain(metric: str) -> str:
    """``train_acc`` -> ``train accuracy``; a unit is said with the number, not with the name."""
    parts = [_WORDS.get(part, part) for part in metric.replace(".", "_").split("_")]
    return " ".join(p for p in parts if p)


def _is_share(metric: str) -> bool:
    return metric.replace(".", "_").split("_")[-1] in _SHARES


def _digits(value: float, digits: int = 3) -> str:
    """A number to three significant digits, whole if it is large, with an exponent if it is extreme."""
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{value:,.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def _scaled(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_digits(value / size, 4)} {letter}"
    return _digits(value, 4)


def amount(metric: str, value: float | None, difference: bool = False, percent: bool = False) -> str:
    """A number with its unit: 73.2 %, 4.1 points, 11.69 M, 12.5 ms.  ``difference``: shares differ by points;
    ``percent``: accuracies are given in percent (published ones) rather than from 0 to 1.
    """
    if value is None or not math.isfinite(value):
        return "unbounded"
    if _is_share(metric):
        return f"{_trim(value if percent else 100 * value)} {'points' if difference else '%'}"
    last = metric.replace(".", "_").split("_")[-1]
    if last in _COUNTS and abs(value) >= 1e4:
        return _scaled(value)
    unit = next((u for end, u in _UNITS.items() if metric.endswith(end) or metric == end[1:]), "")
    return f"{_digits(value)} {unit}".strip()


def _trim(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 1 else f"{value:.1f}".removesuffix(".0")


def timed(metric: str) -> bool:
    """Whether the noise of a clock reaches a metric: all but counts, bytes, pixels and shares, which are not timed."""
    last = metric.replace(".", "_").split("_")[-1]
    return last not in (*_COUNTS, "mb", "gb", "px", "layers") and not _is_share(metric)


def verb(noun: str) -> str:
    """``are`` after a plural."""
    return "are" if noun.endswith("s") and not noun.endswith(("ss", "us", "is", "as")) else "is"


def bare(value: float | None) -> str:
    """A number without unit: a ratio, a slope, a correlation."""
    return "unbounded" if value is None or not math.isfinite(value) else _digits(value)


def of(n: int, what: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def sentence(text: str) -> str:
    """First letter a capital (unless it is an abbreviation already), a full stop at the end."""
    return (text[0].upper() + text[1:]).rstrip(".") + "." if text else text
