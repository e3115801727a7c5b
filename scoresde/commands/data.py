"""Data on the command line: arrays, folders of images, the built-in digits.

All of them are rows ``(n, *event)``. Integer levels are dequantized uniformly into the model's
coordinates, float data are used unchanged.
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
from scoresde.commands.base import add_option, first_line, need
from scoresde.dequantization import dequantize, quantize

__all__ = [
    "ArrayData",
    "DataSource",
    "DequantizedDataset",
    "ImageFolder",
    "Quantization",
    "add_data",
    "add_levels",
    "digits",
    "evaluation_set",
    "open_data",
    "quantization_of",
    "split",
    "training_set",
]

_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

_TRAINING_DIGITS = 1500
"""Number of the 1797 digits for training; the split is the same on every machine."""


# --- sources


class DataSource(ABC):
    """Rows of raw data, read in slices.

    Attributes:
        name: the user's name of the data, for messages.
        shape: ``(n, *event)``.
        levels: number of integer levels, None if it is not known from the data.
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


class ArrayData(DataSource):
    """The rows of an array in memory or memory-mapped from a file."""

    def __init__(self, name: str, array: np.ndarray, levels: int | None = None) -> None:
        if array.ndim == 0 or len(array) == 0 or array.dtype.kind not in "biuf":
            raise ValueError(
                f"data: expected an array of numbers with at least one row, got {name}, "
                f"{array.dtype} of shape {array.shape}; store one sample per row"
            )
        self.name, self.array, self.shape, self.levels = name, array, array.shape, levels

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows as a tensor: float32 or float64, uint8 or int64."""
        part = self.array[start:stop]
        smallest = np.float32 if part.dtype.kind == "f" else np.int64
        dtype = np.uint8 if part.dtype == np.uint8 else np.promote_types(part.dtype, smallest)
        return torch.from_numpy(part.astype(dtype))


class ImageFolder(DataSource):
    """The images of a folder in the order of their names, with 256 levels."""

    levels = 256

    def __init__(self, folder: Path) -> None:
        self.files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGES)
        if not self.files:
            raise ValueError(
                f"data: expected a folder of images, got {folder}, which contains none; supported "
                f"are {', '.join(sorted(_IMAGES))}"
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
                    f"{file.name} after {self.shape[1:]} in {self.files[0].name}; convert them"
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
                f"data: expected an image, got {file}, which Pillow can't read; remove the file"
            ) from None
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def digits(part: str = "digits") -> DataSource:
    """Return scikit-learn's handwritten digits: 17 levels, images ``(1, 8, 8)``.

    Args:
        part: ``"digits"`` for all 1797; ``"digits-train"`` for a fixed random subset of 1500;
            ``"digits-test"`` for the other 297.
    """
    images = need("sklearn.datasets", "data").load_digits().images
    levels = images.astype(np.int64)[:, None]
    order = np.random.RandomState(0).permutation(len(levels))  # the same numbers in every release
    chosen = {
        "digits": np.arange(len(levels)),
        "digits-train": order[:_TRAINING_DIGITS],
        "digits-test": order[_TRAINING_DIGITS:],
    }[part]
    return ArrayData(part, levels[chosen], levels=17)


def open_data(name: str, key: str | None = None) -> DataSource:
    """Return the data of a name on the command line.

    Args:
        name: ``digits``, ``digits-train``, ``digits-test``, the path of an .npy or .npz file, or a
            folder of images.
        key: name of the array in an .npz file; None if there is only one.

    Raises:
        OSError: if the file or folder does not exist.
        ValueError: if it contains no rows of numbers.
    """
    path = Path(name)
    if name in ("digits", "digits-train", "digits-test"):
        return digits(name)
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        raise FileNotFoundError(
            f"data: expected an .npy or .npz file, a folder of images, or digits, digits-train or "
            f"digits-test, got {name!r}, which does not exist; check the spelling"
        )
    try:
        opened = _load(path)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data: expected an .npy or .npz file of numbers, got {name}, which NumPy can't read "
            f"({first_line(error)})"
        ) from None
    if isinstance(opened, np.ndarray):
        if key is not None:
            raise ValueError(
                f"--key: expected an .npz file, got {name}, a single array; omit --key"
            )
        return ArrayData(name, opened)
    return ArrayData(name, _pick(opened, name, key))


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive and not zipfile.is_zipfile(path):  # np.load would not close the file
        raise zipfile.BadZipFile("the end of the archive is missing")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _pick(archive: np.lib.npyio.NpzFile, name: str, key: str | None) -> np.ndarray:
    with archive:
        if key is None and len(archive.files) != 1:
            raise ValueError(
                f"--key: expected the name of one of the arrays in {name}, got none; the file has "
                f"{', '.join(archive.files) or 'no arrays'}"
            )
        key = archive.files[0] if key is None else key
        if key not in archive.files:
            raise ValueError(
                f"--key: expected the name of one of the arrays in {name}, got {key!r}; the file "
                f"has {', '.join(archive.files)}"
            )
        try:
            return archive[key]
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"data: expected numbers, got {key!r} in {name}, which NumPy can't read "
                f"({first_line(error)})"
            ) from None


# --- levels


@dataclass(frozen=True)
class Quantization:
    """Integer levels in the model's coordinates: ``levels`` bins of equal width on [low, high]."""

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_integer("--levels", self.levels, 2)
        check_ordered("--range LOW", self.low, "HIGH", self.high)

    @property
    def scale(self) -> float:
        """Total width of the bins."""
        return self.high - self.low

    def dequantize(self, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return integer levels ``(n, *event)`` dequantized uniformly, float32."""
        return dequantize(
            levels, self.levels, scale=self.scale, shift=self.low, generator=generator
        ).float()

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of the bin that contains each value, or of the nearest bin."""
        return quantize(x, self.levels, scale=self.scale, shift=self.low)


class DequantizedDataset(TensorDataset):
    """Integer levels for training, dequantized with new noise at every access.

    ``tensors`` is one fixed draw, from which ``fit`` estimates moments. The noise of an access is
    drawn from PyTorch's global generator, which ``fit`` seeds at each step.
    """

    def __init__(self, levels: Tensor, quantization: Quantization) -> None:
        super().__init__(quantization.dequantize(levels, torch.Generator().manual_seed(0)))
        self.levels, self.quantization = levels, quantization

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor]:
        return (self.quantization.dequantize(self.levels[index]),)


# --- options


def add_data(parser: ArgumentParser) -> None:
    """Add the argument ``DATA``, ``--key``, ``--levels`` and ``--range``."""
    parser.add_argument(
        "data",
        metavar="DATA",
        help="an .npy or .npz file with one row per sample, a folder of images of one size, or the "
        "built-in digits, digits-train or digits-test (8x8, 17 levels)",
    )
    add_option(
        parser, "--key", str, "NAME", "name of the array in an .npz file",
        default_text="the only array",
    )  # fmt: skip
    add_levels(parser, "integer data have levels 0 … N-1 and are dequantized")


def add_levels(parser: ArgumentParser, use: str) -> None:
    """Add ``--levels`` and ``--range``."""
    add_option(
        parser, "--levels", int, "N", f"number of integer levels: {use}",
        default_text="17 for digits, 256 for images, else none",
    )  # fmt: skip
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        default=(-1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="interval of the model's coordinates that the levels cover (default: -1 1)",
    )


def quantization_of(source: DataSource, options: Namespace) -> Quantization | None:
    """Return the quantization of integer data, None for float data.

    Raises:
        ValueError: if the number of levels of integer data is not given.
    """
    levels = source.levels if options.levels is None else options.levels
    if levels is not None:
        return Quantization(levels, *options.range)
    if not source.read(0, 1).is_floating_point():
        raise ValueError(
            f"--levels: expected the number of levels of the integer data {source.name}, got none; "
            "pass --levels 256 for 8-bit data"
        )
    return None


def split(rows: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows for training and those held out, a random ``fraction`` of all.

    Raises:
        ValueError: if no row remains for training.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    count = round(fraction * len(rows))
    if count == len(rows):
        raise ValueError(
            f"--held-out: expected a fraction that leaves rows for training, got {fraction:g} of "
            f"{len(rows)} rows; pass a smaller one"
        )
    return rows[order[count:]], rows[order[:count]]


def training_set(raw: Tensor, quantization: Quantization | None) -> TensorDataset:
    """Return rows for training; ``tensors[0]`` are points ``(n, *event)``."""
    return TensorDataset(raw) if quantization is None else DequantizedDataset(raw, quantization)


def evaluation_set(raw: Tensor, quantization: Quantization | None) -> Tensor:
    """Return rows for evaluation as points, dequantized with fixed noise."""
    if quantization is None:
        return raw
    return quantization.dequantize(raw, torch.Generator().manual_seed(0))
