"""Figures of diffusions: paths, samples, nearest neighbors, likelihoods.

Every function draws into the axes it is given, or into a new figure, and returns the axes;
``axes.figure.savefig("picture.png")`` writes it. Matplotlib's global state is not changed, so that
the functions work in scripts, servers and notebooks alike. Images are ``(height, width)``,
``(1, height, width)`` or ``(3, height, width)``, with values in ``limits``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde._core.checks import check_integer, check_ordered, check_tensor, summarize
from scoresde._core.random import normal_like
from scoresde._core.shapes import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scoresde.sdes import GaussianSDE

__all__ = [
    "COLORS",
    "figure",
    "forward_path",
    "likelihood_histogram",
    "nearest_neighbors",
    "path_strip",
    "sample_grid",
]

COLORS = ("#2a6f97", "#d1495b", "#edae49", "#66a182", "#6d597a")
"""Colors of groups, in order, from a palette for color-blind readers."""

_STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#333333",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "savefig.facecolor": "white",
}

_SAMPLES_AT_ONCE = 256
"""Number of samples whose distances to all data are in memory at one time."""


def figure(width: float = 8.0, height: float = 5.0, dpi: float = 150.0) -> Figure:
    """Return an empty figure outside pyplot's global state.

    Args:
        width: in inches.
        height: in inches.
        dpi: pixels per inch of the file.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.

    Example:
        >>> figure(4.0, 3.0, dpi=100.0).get_size_inches().tolist()
        [4.0, 3.0]
    """
    kind: type[Figure] = _import("matplotlib.figure").Figure
    return kind(figsize=(width, height), dpi=dpi, layout="constrained")


def style() -> Any:
    """Return a context in which figures have this library's fonts and lines.

    Example:
        >>> with style():
        ...     axes = figure().add_subplot()
        >>> axes.spines["top"].get_visible()
        False
    """
    return _import("matplotlib").rc_context(_STYLE)


def sample_grid(
    images: Tensor,
    *,
    columns: int | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
    cmap: str = "gray",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Show images side by side, row by row.

    Args:
        images: ``(n, height, width)`` or ``(n, channels, height, width)`` with 1 or 3 channels.
        columns: images per row; as many as there are rows if None.
        limits: values of black and white.
        cmap: Matplotlib's name of the color map of one channel; ``"gray_r"`` is black on white.
        title: the title.
        ax: where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        TypeError: if ``images`` is no tensor.
        ValueError: if it holds no images.

    Example:
        >>> axes = sample_grid(torch.rand(6, 1, 8, 8), columns=3, limits=(0.0, 1.0))
        >>> axes.images[0].get_array().shape  # one pixel between images, and around them
        (19, 28)
    """
    pixels = _pixels("images", images, limits)
    n = len(pixels)
    columns = math.ceil(math.sqrt(n)) if columns is None else check_integer("columns", columns, 1)
    return _show(_rows_of(pixels, columns), cmap, title, ax)


def path_strip(
    states: Tensor,
    times: Sequence[float] | Tensor,
    *,
    limits: tuple[float, float] = (-1.0, 1.0),
    cmap: str = "gray",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Show images at successive times: one row for each image, one column for each time.

    Args:
        states: ``(times, n, *image)``, such as states recorded by a callback of a sampler.
        times: the time of each column.
        limits: values of black and white; values beyond are clamped.
        cmap: Matplotlib's name of the color map of one channel.
        title: the title.
        ax: where to draw; a new figure if None.

    Returns:
        The axes, with the times below the columns.

    Raises:
        TypeError: if ``states`` is no tensor.
        ValueError: if it holds no images, or there is not one time per column.

    Example:
        >>> axes = path_strip(torch.rand(3, 2, 8, 8), [0.0, 0.5, 1.0])
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['0', '0.5', '1']
    """
    check_tensor("states", states)
    labels = [float(t) for t in times]
    if states.ndim < 2 or len(states) != len(labels):
        raise ValueError(
            f"states, times: expected (times, n, *image) and one time for each, got "
            f"{summarize(states)} and {len(labels)} times; stack the states of every time"
        )
    pixels = _pixels("states", states.flatten(0, 1), limits).unflatten(0, states.shape[:2])
    ax = _show(pixels.transpose(0, 1), cmap, title, ax)
    ax.set_xticks(_centers(len(labels), pixels.shape[3]))
    ax.set_xticklabels([f"{t:.2g}" for t in labels])
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("time t")
    return ax


def forward_path(
    sde: GaussianSDE,
    x0: Tensor,
    times: Sequence[float] | Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw one path of the diffusion for every sample, at the given times.

    Successive states are drawn from the transition kernel::

        x_t = (α_t/α_s) x_s + (σ_t² − (α_t/α_s)² σ_s²)^{1/2} ε,    s < t,

    so that they share their noise; they are not independent given ``x0``.

    Args:
        sde: a Gaussian diffusion.
        x0: data ``(n, *event)``.
        times: increasing times in [0, T]; the state at 0 is ``x0``.
        generator: source of the noise; None for PyTorch's global one.

    Returns:
        The states ``(times, n, *event)``.

    Raises:
        ValueError: if the times do not increase.

    Example:
        >>> from scoresde import VPSDE
        >>> states = forward_path(VPSDE(), torch.zeros(2, 8, 8), [0.0, 0.1, 1.0])
        >>> states.shape, bool((states[0] == 0).all())
        (torch.Size([3, 2, 8, 8]), True)
    """
    check_tensor("x0", x0)
    states: list[Tensor] = []
    x, previous = x0, 0.0
    for time in (float(t) for t in times):
        if time < previous or (time == previous and states):
            raise ValueError(
                f"times: expected increasing times, got {time:g} after {previous:g}; sort them "
                "and drop repetitions"
            )
        if time > previous:
            scale, std = sde.transition(previous, time)
            x = scale.to(x) * x + std.to(x) * normal_like(x, generator)
        states.append(x)
        previous = time
    return torch.stack(states)


def nearest_neighbors(
    samples: Tensor,
    data: Tensor,
    *,
    columns: int | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
    cmap: str = "gray",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Show samples, and below each the nearest data point, to detect memorized data.

    Args:
        samples: images ``(n, *image)``.
        data: the training data ``(m, *image)``.
        columns: samples per row; all of them if None.
        limits: values of black and white.
        cmap: Matplotlib's name of the color map of one channel.
        title: the title.
        ax: where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        TypeError: if an argument is no tensor.
        ValueError: if the images differ in shape.

    Example:
        >>> data = torch.rand(10, 8, 8)
        >>> axes = nearest_neighbors(data[3:5], data)
        >>> top, bottom = axes.images[0].get_array().data[1:].reshape(2, 9, 19)
        >>> bool((top[:8, 1:9] == bottom[:8, 1:9]).all())
        True
    """
    check_tensor("samples", samples)
    check_tensor("data", data)
    if samples.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"samples, data: expected images of the same shape, got {tuple(samples.shape[1:])} and "
            f"{tuple(data.shape[1:])}; pass the data that the model was trained on"
        )
    nearest = data[nearest_rows(samples, data)]
    columns = len(samples) if columns is None else check_integer("columns", columns, 1)
    pairs = [
        _rows_of(_pixels(name, images, limits), columns)
        for name, images in (("samples", samples), ("data", nearest))
    ]
    table = torch.stack(pairs, dim=1).flatten(0, 1)
    ax = _show(table, cmap, title, ax)
    ax.set_yticks(_centers(len(table), table.shape[2]))
    ax.set_yticklabels(["sample", "nearest"] * (len(table) // 2))
    ax.tick_params(axis="y", length=0)
    return ax


def nearest_rows(samples: Tensor, data: Tensor) -> Tensor:
    """Return the index of the data point nearest to each sample ``(n,)``, by Euclidean distance."""
    points = flatten(data).double()
    parts = flatten(samples).double().split(_SAMPLES_AT_ONCE)
    return torch.cat([torch.cdist(part, points).argmin(1) for part in parts])


def likelihood_histogram(
    groups: Mapping[str, Tensor],
    *,
    marks: Mapping[str, float] | None = None,
    bins: int = 40,
    unit: str = "bits per dimension",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Show histograms of likelihoods, one per group, on common bins.

    Args:
        groups: name → values ``(n,)``; those that are not finite are omitted, and counted in the
            legend.
        marks: name → a value to mark by a vertical line.
        bins: number of bins over the range of all groups.
        unit: label of the horizontal axis.
        title: the title.
        ax: where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no finite value.

    Example:
        >>> groups = {"held-out": torch.randn(100), "noise": torch.randn(50) + 9}
        >>> axes = likelihood_histogram(groups)
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['held-out', 'noise']
    """
    finite = {name: values[values.isfinite()].double().cpu() for name, values in groups.items()}
    if sum(map(len, finite.values())) == 0:
        raise ValueError("groups: expected some finite values, got none; check the likelihoods")
    low, high = (float(end) for end in torch.aminmax(torch.cat(list(finite.values()))))
    margin = 0.02 * (high - low) or 0.5
    count = check_integer("bins", bins, 1) + 1
    edges = torch.linspace(low - margin, high + margin, count, dtype=torch.float64).tolist()
    ax = figure().add_subplot() if ax is None else ax
    for k, (name, values) in enumerate(finite.items()):
        omitted = len(groups[name]) - len(values)
        label = f"{name} ({omitted} not finite)" if omitted else name
        color = COLORS[k % len(COLORS)]
        ax.hist(values.numpy(), edges, color=color, alpha=0.75, label=label)
    for name, value in (marks or {}).items():
        ax.axvline(value, color="#555555", linewidth=1.0, linestyle="--")
        ax.annotate(
            name,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            va="top",
            color="#555555",
        )
    ax.set_xlabel(unit)
    ax.set_ylabel("count")
    ax.set_title(title)
    ax.legend()
    return ax


def _import(module: str) -> Any:
    """Import a module of Matplotlib, an optional dependency."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots: Matplotlib is needed to draw; install it with pip install 'scoresde[plots]'",
            name=error.name,
        ) from None


def _pixels(name: str, images: Tensor, limits: tuple[float, float]) -> Tensor:
    """Images as ``(n, height, width, channels)`` with values in [0, 1]."""
    check_tensor(name, images)
    low, high = check_ordered("limits[0]", limits[0], "limits[1]", limits[1])
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"{name}: expected images (n, height, width), (n, 1, height, width) or (n, 3, height, "
            f"width), got {summarize(images)}; reshape each sample to an image"
        )
    scaled = (images.detach().to("cpu", torch.float64) - low) / (high - low)
    return scaled.clamp(0.0, 1.0).permute(0, 2, 3, 1)


def _rows_of(pixels: Tensor, columns: int) -> Tensor:
    """Images in rows ``(rows, columns, …)``, the last row padded with blanks."""
    blanks = torch.full((-len(pixels) % columns, *pixels.shape[1:]), torch.nan)
    rows: Tensor = torch.cat([pixels, blanks]).unflatten(0, (-1, columns))
    return rows


def _centers(count: int, size: int) -> list[float]:
    """Centers of images that are ``size`` pixels wide, one pixel apart."""
    return [1 + k * (size + 1) + (size - 1) / 2 for k in range(count)]


def _show(table: Tensor, cmap: str, title: str, ax: Axes | None) -> Axes:
    """Show images ``(rows, columns, height, width, channels)`` with one pixel around each."""
    rows, columns, height, width, channels = table.shape
    canvas = torch.full(
        (rows * (height + 1) + 1, columns * (width + 1) + 1, channels), torch.nan, dtype=table.dtype
    )
    inside = canvas[1:, 1:].unflatten(0, (rows, height + 1)).unflatten(2, (columns, width + 1))
    inside[:, :height, :, :width] = table.transpose(1, 2)
    ax = figure().add_subplot() if ax is None else ax
    picture = canvas.squeeze(2) if channels == 1 else torch.nan_to_num(canvas, nan=1.0)
    ax.imshow(picture.numpy(), cmap=cmap, vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title)
    return ax
