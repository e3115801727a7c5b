"""What all benchmark scripts use: options, Markdown tables, page headers and timing.

    from common import header, parser, seconds, table, write_page

Scripts run as ``python benchmarks/<name>.py``, which makes this module importable.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def parser(
    description: str | None,
    *,
    sections: Iterable[str] = (),
    quick: str | None = "small sizes: only checks that the script runs",
    out: str = "folder for the pages; without it they are only printed",
) -> argparse.ArgumentParser:
    """Return a parser with ``--only`` (if there are sections), ``--quick`` and ``--out``.

    Args:
        description: the docstring of the script; its first line is shown.
        sections: the choices of ``--only``, all of them by default.
        quick: help of ``--quick``; None leaves the option out.
        out: help of ``--out``.
    """
    made = argparse.ArgumentParser(description=(description or "").strip().split("\n")[0])
    if names := list(sections):
        made.add_argument("--only", nargs="+", choices=names, default=names)
    if quick is not None:
        made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--out", type=Path, help=out)
    return made


def versions(*packages: str) -> str:
    """Return ``torch 2.13.0, scipy 1.17.1, Python 3.11.7`` for the packages named."""
    installed = [f"{package} {version(package)}" for package in packages]
    return ", ".join((*installed, f"Python {platform.python_version()}"))


def header(title: str, command: str, machine: str, *packages: str) -> str:
    """Return the head of a page: title, command, machine, date and versions."""
    today = datetime.now(tz=UTC).date().isoformat()
    return f"# {title}\n\nMade by `{command}` on {machine}, {today}: {versions(*packages)}."


def write_page(folder: Path | None, name: str, text: str) -> None:
    """Print a page, and write it to ``folder/name`` unless the folder is None."""
    print(text, flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float, decimals: int | None = None) -> str:
    """Return fixed decimals, or two digits such as 5.2e-4; a dash if infinite or NaN."""
    if not math.isfinite(value):
        return "–"
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0 or 0.1 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of the positive finite values; NaN if there is none."""
    logs = [math.log(v) for v in values if 0 < v < math.inf]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
