"""Names of parametrized tests, the same in every process."""

from __future__ import annotations

import re


def named(value: object) -> str:
    """Return ``repr(value)`` without addresses, which differ between the workers of a test run."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
