"""Ctrl-C ends the step in progress, not the run's record."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def last_step() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed, instead of breaking off a step; twice breaks off."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False
        return
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(step: int, path: Path | None) -> None:
    """Raise ``KeyboardInterrupt``, which tells what is left of the run."""
    kept = "score holds the weights so far" if path is None else f"call fit again to go on ({path})"
    raise KeyboardInterrupt(f"stopped after step {step}; {kept}")
