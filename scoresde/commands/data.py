"""Data on the command line: arrays, folders of images, the built-in digits.

All of them are read as rows ``(n, *event)``. Integer levels become points of the model's
coordinates by uniform dequantization, float data are taken as they are.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from scoresde._core.checks import check_integer, check_ordered
from scoresde.commands.base import need
from scoresde.dequantization import dequantize, quantize

__all__ = [
    "ArrayRows",
    "Bins",
    "Dequantized",
    "ImageRows",
    "Rows",
    "add_data",
    "add_levels",
    "bins_of",
    "digits",
    "evaluation_set",
    "open_data",
    "split",
    "training_set",
]

_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

_TRAINING_DIGITS = 1500
"""Of the 1797 digits, so many are for training; the split is the same on every machine."""


# --- rows


class Rows(ABC):
    """Rows of raw data, read a part at a time.

    Attributes:
        name: what the user calls them.
        shape: ``(n, *event)``.
        levels: number of integer levels, if the data tell; None otherwise.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None = None

    def __len__(self) -> int:
        """Return n."""
        return self.shape[0]

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows ``start`` to ``stop`` as they are stored, ``(stop - start, *event)``."""


class ArrayRows(Rows):
    """The rows of an array in memory or mapped from a file."""

    def __init__(self, name: str, array: np.ndarray, levels: int | None = None) -> None:
        if array.ndim == 0 or len(array) == 0 or array.dtype.kind not in "biuf":
            raise ValueError(
                f"data: expected an array of numbers with at least one row, got {name} with "
                f"{array.dtype} of shape {array.shape}"
            )
        self.name, self.array, self.shape, self.levels = name, array, array.shape, levels

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows as a tensor: float32 or float64, uint8 or int64."""
        part = self.array[start:stop]
        smallest = np.float32 if part.dtype.kind == "f" else np.int64
        dtype = np.uint8 if part.dtype == np.uint8 else np.promote_types(part.dtype, smallest)
        return torch.from_numpy(part.astype(dtype))


class ImageRows(Rows):
    """The images of a folder in the order of their names, 256 levels each."""

    levels = 256

    def __init__(self, folder: Path) -> None:
        self.files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGES)
        if not self.files:
            raise ValueError(
                f"data: expected a folder of images, got {folder}, which holds none "
                f"({', '.join(sorted(_IMAGES))})"
            )
        self.name = str(folder)
        self.shape = (len(self.files), *self._image(self.files[0]).shape)

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return images ``(n, channels, height, width)``, uint8."""
        images = []
        for file in self.files[start:stop]:
            images.append(self._image(file))
            if images[-1].shape != self.shape[1:]:
                raise ValueError(
                    f"data: expected images of one size and mode, got {images[-1].shape} in "
                    f"{file.name} after {self.shape[1:]} in {self.files[0].name}"
                )
        return torch.from_numpy(np.stack(images))

    def _image(self, file: Path) -> np.ndarray:
        pillow = need("PIL.Image", "data")
        try:
            with pillow.open(file) as picture:
                mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
                pixels = np.array(picture.convert(mode))
        except pillow.UnidentifiedImageError:
            raise ValueError(
                f"data: expected an image, got {file}, which Pillow can't read"
            ) from None
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def digits(part: str = "digits") -> Rows:
    """Return scikit-learn's handwritten digits: 17 levels, images ``(1, 8, 8)``.

    Args:
        part: ``"digits"`` for all 1797; ``"digits-train"`` for 1500 of them, drawn once and for
            all; ``"digits-test"`` for the 297 others.
    """
    images = need("sklearn.datasets", "data").load_digits().images
    levels = images.astype(np.int64)[:, None]
    order = np.random.RandomState(0).permutation(len(levels))  # the same numbers in every release
    chosen = {
        "digits": np.arange(len(levels)),
        "digits-train": order[:_TRAINING_DIGITS],
        "digits-test": order[_TRAINING_DIGITS:],
    }[part]
    return ArrayRows(part, levels[chosen], levels=17)


def open_data(name: str, key: str | None = None) -> Rows:
    """Return the data that a user names.

    Args:
        name: ``digits``, ``digits-train``, ``digits-test``, the path of an .npy or .npz file, or a
            folder of images.
        key: which array of an .npz file; None if there is only one.

    Raises:
        OSError: if there is no such file or folder.
        ValueError: if it can't be read as rows of numbers.
    """
    path = Path(name)
    if name in ("digits", "digits-train", "digits-test"):
        return digits(name)
    if path.is_dir():
        return ImageRows(path)
    if not path.exists():
        raise FileNotFoundError(
            f"data: expected an .npy or .npz file, a folder of images, or digits, digits-train or "
            f"digits-test, got {name!r}, which does not exist"
        )
    try:
        opened = _load(path)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data: expected an .npy or .npz file of numbers, got {name}, which NumPy can't read "
            f"({_first_line(error)})"
        ) from None
    if isinstance(opened, np.ndarray):
        if key is not None:
            raise ValueError(f"--key: expected an .npz file to look into, got {name}, one array")
        return ArrayRows(name, opened)
    return ArrayRows(name, _pick(opened, name, key))


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive and not zipfile.is_zipfile(path):  # np.load would leave it open
        raise zipfile.BadZipFile("the end of the archive is missing")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _pick(archive: np.lib.npyio.NpzFile, name: str, key: str | None) -> np.ndarray:
    with archive:
        if key is None and len(archive.files) != 1:
            raise ValueError(
                f"--key: expected the name of one of the arrays in {name}: "
                f"{', '.join(archive.files) or 'it holds none'}"
            )
        key = archive.files[0] if key is None else key
        if key not in archive.files:
            raise ValueError(
                f"--key: expected one of the arrays in {name}, {', '.join(archive.files)}, got "
                f"{key!r}"
            )
        try:
            return archive[key]
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"data: expected numbers, got {key!r} in {name}, which NumPy can't read "
                f"({_first_line(error)})"
            ) from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# --- levels


@dataclass(frozen=True)
class Bins:
    """How integer levels lie in the model's coordinates: ``levels`` equal bins on [low, high]."""

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_integer("--levels", self.levels, 2)
        check_ordered("--range LOW", self.low, "HIGH", self.high)

    @property
    def scale(self) -> float:
        """Width of all bins together."""
        return self.high - self.low

    def dequantize(self, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Spread integer levels ``(n, *event)`` evenly over their bins, float32."""
        return dequantize(
            levels, self.levels, scale=self.scale, shift=self.low, generator=generator
        ).float()

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of the bin that each point is in, or is nearest to."""
        return quantize(x, self.levels, scale=self.scale, shift=self.low)


class Dequantized(TensorDataset):
    """Integer levels for training, dequantized anew whenever they are looked at.

    ``tensors`` holds one fixed draw, from which moments are estimated. The noise of every look
    comes from PyTorch's global generator, which ``fit`` seeds at each step.
    """

    def __init__(self, levels: Tensor, bins: Bins) -> None:
        super().__init__(bins.dequantize(levels, torch.Generator().manual_seed(0)))
        self.levels, self.bins = levels, bins

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor]:
        return (self.bins.dequantize(self.levels[index]),)


# --- options


def add_data(parser: ArgumentParser) -> None:
    """Add the argument ``DATA`` and the options that tell how to read it."""
    parser.add_argument(
        "data",
        metavar="DATA",
        help="an .npy or .npz file with one row per sample, a folder of images of one size, or the "
        "built-in digits, digits-train or digits-test (8x8, 17 levels)",
    )
    parser.add_argument(
        "--key",
        metavar="NAME",
        help="which array of an .npz file to read (default: the only one)",
    )
    add_levels(parser, "integer data hold 0 … N-1 and are dequantized")


def add_levels(parser: ArgumentParser, use: str) -> None:
    """Add ``--levels`` and ``--range``."""
    parser.add_argument(
        "--levels",
        type=int,
        metavar="N",
        help=f"number of integer levels: {use} (default: 17 for digits, 256 for images, else none)",
    )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        default=(-1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="the interval all levels cover in the model's coordinates (default: -1 1)",
    )


def bins_of(rows: Rows, options: Namespace) -> Bins | None:
    """Return the bins of integer data, None for float data.

    Raises:
        ValueError: if the data are integers of which nobody says how many levels they have.
    """
    levels = rows.levels if options.levels is None else options.levels
    if levels is not None:
        return Bins(levels, *options.range)
    if not rows.read(0, 1).is_floating_point():
        raise ValueError(
            f"--levels: expected the number of levels of integer data such as {rows.name}; pass "
            "--levels 256 for 8-bit data"
        )
    return None


def split(rows: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows to learn and those held out, a random ``fraction`` of all.

    Raises:
        ValueError: if nothing is left to learn.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    count = round(fraction * len(rows))
    if count == len(rows):
        raise ValueError(
            f"--held-out: expected some rows to be left, got {fraction:g} of {len(rows)}"
        )
    return rows[order[count:]], rows[order[:count]]


def training_set(raw: Tensor, bins: Bins | None) -> TensorDataset:
    """Return rows to learn; ``tensors[0]`` holds them as points ``(n, *event)``."""
    return TensorDataset(raw) if bins is None else Dequantized(raw, bins)


def evaluation_set(raw: Tensor, bins: Bins | None) -> Tensor:
    """Return rows to evaluate as points, under noise that is always the same."""
    return raw if bins is None else bins.dequantize(raw, torch.Generator().manual_seed(0))
