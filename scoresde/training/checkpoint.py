"""The file that keeps a run: written in one piece, read with distrust."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from scoresde._core.checks import summarize

_FORMAT = "scoresde.fit"


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
    """Write the file; the new one replaces the old in one piece."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save({"format": _FORMAT, "version": 1, **state}, partial)
    os.replace(partial, path)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Return what the file keeps; nothing in it is executed."""
    hint = "pass another file, or resume=False to overwrite this one"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever the bytes make of the reader
        raise ValueError(
            f"checkpoint: expected a file written by fit, got {path}, which is damaged or of "
            f"another kind ({type(error).__name__}); {hint}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(
            f"checkpoint: expected a file written by fit, got {path}, a file of another program; "
            f"{hint}"
        )
    return state


def check_recipe(path: Path, kept: dict[str, str], asked: dict[str, str]) -> None:
    """Raise unless the run that the file keeps had the settings that are asked for."""
    changed = [name for name in asked if kept.get(name) != asked[name]]
    if changed:
        told = ", ".join(f"{name}={kept.get(name)} (now {asked[name]})" for name in changed)
        raise ValueError(
            f"checkpoint: expected a run with the same settings, got {path} with {told}; go on "
            "with those, pass another file, or resume=False to start anew"
        )
