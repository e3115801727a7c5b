"""The interface of a command, and options and file handling that commands share."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace, _ActionsContainer
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from scoresde._core.checks import check_integers
from scoresde.scores import ScoreModel

__all__ = [
    "Command",
    "add_batch_size",
    "add_device",
    "add_model",
    "add_option",
    "add_outputs",
    "add_seed",
    "add_shape",
    "atomic_write",
    "device_of",
    "event_shape_of",
    "first_line",
    "need",
    "output_paths",
    "read_model",
    "writable",
]


@dataclass(frozen=True)
class Command:
    """A subcommand: its help texts, its options and its function.

    Attributes:
        name: the name on the command line.
        summary: one line, for the list of commands.
        description: a paragraph, for the help of the command.
        example: example command lines.
        add_options: adds the options to a parser.
        run: runs the command with the parsed options and returns its exit code, None for 0; user
            errors are ``ValueError``, ``TypeError`` or ``OSError`` with a message of one line.
    """

    name: str
    summary: str
    description: str
    example: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]


# --- options


def add_option(
    parser: _ActionsContainer,
    flag: str,
    kind: Callable[[str], Any],
    metavar: str,
    text: str,
    *,
    default: Any = None,
    default_text: str = "%(default)s",
) -> None:
    """Add an option with one value; its help ends in the default.

    Args:
        parser: a parser, or a group of its options.
        flag: the option, such as ``"--steps"``.
        kind: converts the text of the value.
        metavar: the name of the value in the help.
        text: the help.
        default: the default value.
        default_text: the default in the help.
    """
    parser.add_argument(
        flag,
        type=kind,
        default=default,
        metavar=metavar,
        help=f"{text} (default: {default_text})",
    )


def add_model(parser: ArgumentParser) -> None:
    """Add the argument ``MODEL``."""
    parser.add_argument("model", metavar="MODEL", help="a model file written by scoresde train")


def add_seed(parser: ArgumentParser, purpose: str) -> None:
    """Add ``--seed``, which determines ``purpose``."""
    add_option(parser, "--seed", int, "N", f"integer seed that determines {purpose}", default=0)


def add_device(parser: ArgumentParser) -> None:
    """Add ``--device``."""
    add_option(
        parser, "--device", str, "NAME", "device of the computation: cpu, cuda, cuda:1, …",
        default="cuda" if torch.cuda.is_available() else "cpu",
        default_text="cuda if available, else cpu",
    )  # fmt: skip


def add_batch_size(parser: _ActionsContainer) -> None:
    """Add ``--batch-size``, the number of samples per evaluation of the network."""
    add_option(
        parser, "--batch-size", int, "N",
        "samples per evaluation of the network; affects memory, not the samples",
        default=256,
    )  # fmt: skip


def add_shape(parser: _ActionsContainer) -> None:
    """Add ``--shape``, the shape of one sample."""
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="N",
        help="shape of one sample (default: the one stored in the model file)",
    )


def add_outputs(parser: ArgumentParser, arrays: str, picture: str) -> None:
    """Add ``--out`` for arrays and ``--grid`` for a picture."""
    add_option(parser, "--out", str, "FILE", arrays, default_text="none")
    add_option(parser, "--grid", str, "FILE", picture, default_text="none")


def output_paths(options: Namespace, *suffixes: str) -> tuple[Path | None, Path | None]:
    """Return the paths of ``--out``, with one of the suffixes, and ``--grid``; None if not given.

    Raises:
        ValueError: if neither is given, or one has an unknown suffix.
        OSError: if a folder does not exist, or a path is a folder.
    """
    if options.out is None and options.grid is None:
        raise ValueError(
            "--out, --grid: expected at least one of them, got neither; try --grid samples.png for "
            "a picture"
        )
    hint = "--grid draws a picture"
    out = None if options.out is None else writable("--out", options.out, *suffixes, hint=hint)
    grid = None if options.grid is None else writable("--grid", options.grid, ".png", ".pdf")
    return out, grid


# --- packages, devices, models


def need(module: str, extra: str) -> Any:
    """Return an optional package; the error names the extra that installs it.

    Raises:
        ModuleNotFoundError: if it is not installed.

    Example:
        >>> need("no_such_package", "plots")
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: no_such_package: expected ... pip install 'scoresde[plots]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{module}: expected an installed package; run pip install 'scoresde[{extra}]'",
            name=error.name,
        ) from None


def device_of(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: if the device does not exist.
    """
    try:
        device = torch.device(name)
        torch.empty((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device: expected an available device, got {name!r}; try --device cpu ({reason})"
        ) from None
    return device


def read_model(path: str, device: str) -> ScoreModel:
    """Return the model of a file, on a device.

    Raises:
        OSError: if the file does not exist.
        ValueError: if the file is damaged or of another format, or the device does not exist.
    """
    return ScoreModel.load(path, device=device_of(device))


def event_shape_of(model: ScoreModel, options: Namespace) -> tuple[int, ...]:
    """Return the shape of one sample: ``--shape``, or that of the model's data moments.

    Raises:
        ValueError: if neither is given, or ``--shape`` has a number below 1.
    """
    if options.shape is not None:
        return check_integers("--shape", options.shape, 1)
    if not model.moments.known:
        raise ValueError(
            "--shape: expected the shape of one sample, got none, and the model file stores none; "
            "pass for example --shape 3 32 32"
        )
    return tuple(model.moments.mean.shape)


# --- files


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error) or type(error).__name__).splitlines()[0]


def writable(option: str, path: str, *suffixes: str, hint: str = "") -> Path:
    """Return the path of an output file.

    Args:
        option: the option, for the message.
        path: its value.
        *suffixes: the supported suffixes.
        hint: hint of the message about another suffix.

    Raises:
        ValueError: if the path has none of the suffixes.
        OSError: if its folder does not exist, or it is a folder.
    """
    file = Path(path)
    if file.suffix not in suffixes:
        raise ValueError(
            f"{option}: expected a file name that ends in {' or '.join(suffixes)}, got {path!r}; "
            f"{hint or 'the suffix determines the format'}"
        )
    if file.is_dir():
        raise IsADirectoryError(
            f"{option}: expected a file name, got the folder {path!r}; name a file in it"
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"{option}: expected a path in an existing folder, got {path!r}; create "
            f"the folder {str(file.parent)!r}"
        )
    return file


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces ``path`` unless the block raises."""
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
