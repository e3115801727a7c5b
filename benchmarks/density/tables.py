"""Tables in Markdown, and the statistics they hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def cheapest(sweep: Iterable[tuple[float, float]], threshold: float) -> float:
    """Cost of the first (cost, error) from which on all errors stay below; infinite if none."""
    best = math.inf
    for cost, error in sorted(sweep, reverse=True):
        if not error <= threshold:
            break
        best = cost
    return best


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of those that are positive and finite; NaN if none is."""
    logs = [math.log(v) for v in values if 0 < v < math.inf]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def number(value: float, digits: int = 0) -> str:
    """Return a number, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
