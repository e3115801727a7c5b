"""The checkpoint of a run: atomic write, safe load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from scoresde._core.checks import summarize

_FORMAT = "scoresde.fit"
_VERSION = 2
_HINT = "pass another file, or resume=False to overwrite this one"


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that can be written, or raise."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"checkpoint: expected the path of a file, got {summarize(path)}; pass a string or Path"
        )
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(
            f"checkpoint: expected the path of a file, got the folder {file}; name a file inside it"
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"checkpoint: expected a path in an existing folder, got {file}; create {file.parent}"
        )
    return file


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a file beside the old one, then replace the old one by it."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save({"format": _FORMAT, "version": _VERSION, **state}, partial)
    os.replace(partial, path)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Return the content of the file; no code in it is executed."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # arbitrary bytes raise arbitrary exceptions
        raise ValueError(
            f"checkpoint: expected a file written by fit, got {path}, which is damaged or of "
            f"another kind ({type(error).__name__}); {_HINT}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(
            f"checkpoint: expected a file written by fit, got {path}, a file of another program; "
            f"{_HINT}"
        )
    if state.get("version") != _VERSION:
        raise ValueError(
            f"checkpoint: expected a file of version {_VERSION}, got {path} of version "
            f"{state.get('version')}, written by another version of scoresde; {_HINT}"
        )
    return state


def check_settings(path: Path, stored: dict[str, str], given: dict[str, str]) -> None:
    """Raise unless the run in the checkpoint had the settings of this call."""
    changed = [name for name in given if stored.get(name) != given[name]]
    if changed:
        listed = ", ".join(f"{name}={stored.get(name)} (now {given[name]})" for name in changed)
        raise ValueError(
            f"checkpoint: expected a run with the same settings, got {path} with {listed}; resume "
            "with those, pass another file, or resume=False to start anew"
        )
