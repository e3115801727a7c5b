"""What a command is, and what commands share."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from scoresde.scores import ScoreModel

__all__ = [
    "Command",
    "add_device",
    "add_seed",
    "device_of",
    "event_shape_of",
    "need",
    "read_model",
    "replacing",
    "writable",
]


@dataclass(frozen=True)
class Command:
    """A subcommand: its words for ``--help``, its options, and what it does.

    Attributes:
        name: what is typed.
        summary: one line, for the list of commands.
        description: a paragraph, for its own help.
        example: command lines that show its use.
        add_options: adds the options to a parser.
        run: does the work with the parsed options, and returns an exit code, None for 0; user
            errors are ``ValueError``, ``TypeError`` or ``OSError`` with a message of one line.
    """

    name: str
    summary: str
    description: str
    example: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]


def add_seed(parser: ArgumentParser, decides: str) -> None:
    """Add ``--seed``, which decides all that is random."""
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help=f"integer that decides {decides} (default: %(default)s)",
    )


def add_device(parser: ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        metavar="NAME",
        help="where to compute: cpu, cuda, cuda:1 … (default: cuda if there is one, else cpu)",
    )


def need(module: str, extra: str) -> Any:
    """Import an optional package, or say which extra installs it.

    Raises:
        ModuleNotFoundError: if it is not installed.

    Example:
        >>> need("no_such_package", "plots")
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: no_such_package is needed here; ... pip install 'scoresde[plots]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{module} is needed here; install it with pip install 'scoresde[{extra}]'",
            name=error.name,
        ) from None


def device_of(name: str) -> torch.device:
    """Return a device that works.

    Raises:
        ValueError: if there is no such device.
    """
    try:
        device = torch.device(name)
        torch.empty((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: expected cpu or a GPU, got {name!r} ({reason})") from None
    return device


def read_model(path: str, device: str) -> ScoreModel:
    """Read a model file onto a device.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged or foreign, or there is no such device.
    """
    return ScoreModel.load(path, device=device_of(device))


def event_shape_of(model: ScoreModel) -> tuple[int, ...]:
    """Return the shape of one sample, which a model knows from the moments of its data.

    Raises:
        ValueError: if it does not know them.
    """
    if not model.moments.known:
        raise ValueError(
            "--shape: expected the shape of one sample, which this model file does not tell; pass "
            "for example --shape 3 32 32"
        )
    return tuple(model.moments.mean.shape)


def writable(option: str, path: str, *suffixes: str, hint: str = "") -> Path:
    """Return the path of a file to write, if its folder exists and its kind is known.

    What to do about another kind is told by ``hint``.

    Raises:
        ValueError: if it has none of the suffixes.
        OSError: if its folder does not exist, or it is a folder itself.
    """
    file = Path(path)
    if file.suffix not in suffixes:
        raise ValueError(
            f"{option}: expected a file name that ends in {' or '.join(suffixes)}, got {path!r}"
            + (f"; {hint}" if hint else "")
        )
    if file.is_dir():
        raise IsADirectoryError(f"{option}: expected a file name, got the folder {path!r}")
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"{option}: expected a path in an existing folder, got {path!r}; create "
            f"{str(file.parent)!r}"
        )
    return file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write beside ``path``, which it replaces in one piece if all goes well."""
    scratch = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
