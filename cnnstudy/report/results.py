"""What a trial returned, as a record holds it: metrics in the record's line, arrays beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnnstudy.config import Refused

LINE_VALUES = 256  # numbers of a list that may stand in a record's line; longer ones are arrays beside it


def split(result: Mapping[str, Any], experiment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics for the record's line, and arrays that go beside it."""
    import numpy as np

    metrics: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif isinstance(value, (list, tuple)):
            if len(value) > LINE_VALUES:
                raise Refused(f"{experiment}: metric {name!r} has {len(value)} values; return long lists as NumPy arrays")
            metrics[name] = _number(value)
        elif isinstance(value, Mapping):
            metrics[name] = {str(k): _number(v) for k, v in value.items()}
        else:
            metrics[name] = _number(value)
    return metrics, arrays


def _number(value: Any) -> Any:
    """A JSON value; a number that is not finite becomes null, in lists of lists too, and the page says that it is missing."""
    import math

    if isinstance(value, (list, tuple)):
        return [_number(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
