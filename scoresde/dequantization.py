r"""Integer data and densities: dequantization, bounds on log P, bits per dimension.

Levels k in {0, ..., L-1} own bins that tile an interval of the model's coordinates,

    bin(k) = shift + width · [k, k+1),    width = scale / L,    range [shift, shift + scale],

so ``scale=2, shift=-1`` is the convention of data in [-1, 1] and ``scale=1, shift=0`` that of
[0, 1].  A density p gives level k the probability P(k) = ∫_bin(k) p(x) dx, and for any law q(u | k)
of a point at u ∈ [-½, ½] widths from the centre of the bin, Jensen's inequality gives

    log P(k) ≥ E[log (1/K) Σ_i p(x_i) width^d / q(u_i | k)],    x_i = centre(k) + width · u_i.

K = 1 is the variational bound; K > 1, the importance-weighted one, is tighter and tends to log P(k)
as K grows.  With uniform noise log q = 0, and at K = 1, in bits per dimension,

    −log₂ P(k) / d ≤ E[−log p(x)] / (d ln 2) − log₂ width :

for 256 levels the offset −log₂ width is 7 in [-1, 1] and 8 in [0, 1].

References:
    Theis, van den Oord and Bethge, "A note on the evaluation of generative models", ICLR 2016.
    Ho et al., "Flow++", ICML 2019 (variational dequantization).
    Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
    Zheng, Lu, Chen and Zhu, "Improved techniques for maximum likelihood estimation for diffusion
    ODEs", ICML 2023 (truncated-normal dequantization).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde._checks import (
    check_finite,
    check_floating,
    check_integer,
    check_integers,
    check_number,
    check_positive,
    check_state,
    check_tensor,
    describe,
)
from scoresde._random import uniform_like
from scoresde._shapes import flatten

__all__ = [
    "Dequantization",
    "DequantizedBound",
    "TruncatedNormalDequantization",
    "UniformDequantization",
    "bits_per_dim",
    "check_dequantized",
    "dequantization_log_prob",
    "dequantize",
    "dequantized_bound",
    "looks_quantized",
    "quantize",
]

Coefficient = float | Tensor
"""A number, or a tensor that broadcasts against the event shape."""


# --- laws of the noise within a bin


@runtime_checkable
class Dequantization(Protocol):
    """A law q(u | k) of the position u ∈ [-½, ½]^d within a bin, in bin widths from its centre.

    Both methods see the centre of the bin, ``(batch, *event)``, and its width, shaped ``event``, in
    the model's coordinates and in float64, so that a learned law may depend on the data.
    """

    def sample(
        self, centre: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Positions u, shaped like ``centre``."""
        ...

    def log_prob(self, u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        """Log q(u | k) in nats, ``(batch,)``, with respect to du: 0 for the uniform law."""
        ...


def _inside(u: Tensor) -> Tensor:
    """0 within the bin, -inf outside."""
    return torch.where(u.abs() <= 0.5, 0.0, -math.inf).to(u)


@dataclass(frozen=True)
class UniformDequantization:
    """Uniform noise over the bin, q(u | k) = 1: the published convention (Theis et al. 2016)."""

    def sample(
        self, centre: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Positions u, uniform on [-½, ½), shaped like ``centre``."""
        return uniform_like(centre, generator) - 0.5

    def log_prob(self, u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        """0 nats within the bin, -inf outside, ``(batch,)``."""
        return flatten(_inside(u)).sum(1)


@dataclass(frozen=True)
class TruncatedNormalDequantization:
    r"""Normal noise around the centre of the bin, truncated to the bin: training-free.

    With s = ``std`` / width and τ = 1/(2s), the bin's half-width in standard deviations,

        log q(u | k) = Σ_i −u_i²/(2s²) − log(s √(2π)) − log erf(τ/√2),    |u_i| ≤ ½.

    A diffusion model has seen the data with noise of standard deviation σ(t)/α(t) (in the data's
    coordinates) and nothing sharper than that of its first time ``t_min``.  With
    ``std = σ(t_min)/α(t_min)`` the dequantized points have the law that the model was trained on,
    cut off at the bin's edges; uniform noise has not.  A very large ``std`` is the uniform law.

    Args:
        std: Standard deviation of the noise before truncation, in the model's coordinates.

    References:
        Zheng et al., "Improved techniques for maximum likelihood estimation for diffusion ODEs",
        ICML 2023, truncated-normal dequantization.

    Example:
        >>> TruncatedNormalDequantization(std=0.0013)
        TruncatedNormalDequantization(std=0.0013)
    """

    std: float

    def __post_init__(self) -> None:
        """Check the standard deviation."""
        cure = "pass σ(t_min)/α(t_min) of the diffusion, exp(-sde.half_logsnr(t_min))"
        object.__setattr__(self, "std", check_positive("std", self.std, cure))

    def sample(
        self, centre: Tensor, width: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Positions u by inversion of the distribution function, shaped like ``centre``."""
        s = self.std / width
        mass = torch.erf(0.5 / (s * math.sqrt(2)))
        quantile = torch.erfinv(mass * uniform_like(centre, generator, lower=-1.0, upper=1.0))
        return (math.sqrt(2) * s * quantile).clamp(-0.5, 0.5)

    def log_prob(self, u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        """Log q(u | k) in nats, ``(batch,)``; -inf outside of the bin."""
        s = self.std / width
        mass = torch.erf(0.5 / (s * math.sqrt(2)))
        normaliser = torch.log(s * math.sqrt(2 * math.pi) * mass)
        return flatten(_inside(u) - 0.5 * (u / s) ** 2 - normaliser).sum(1)


UNIFORM = UniformDequantization()


# --- bins


def _coefficient(
    name: str, value: object, event_shape: Sequence[int], device: torch.device, *, positive: bool
) -> Tensor:
    """``value`` as a float64 tensor of shape ``event_shape``."""
    event_shape = tuple(event_shape)
    if not isinstance(value, Tensor):
        number = check_positive(name, value) if positive else check_number(name, value)
        return torch.full(event_shape, number, dtype=torch.float64, device=device)
    value = check_finite(name, check_floating(name, value)).to(device, torch.float64)
    if positive and not bool((value > 0).all()):
        raise ValueError(
            f"{name}: expected positive entries, got a smallest one of {float(value.min())!r}; "
            "pass the width of the range, upper minus lower end"
        )
    try:
        return value.expand(event_shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a number or a tensor that broadcasts to the event shape "
            f"{event_shape}, got {describe(value)}; add trailing dimensions of size one"
        ) from None


_OFF_THE_EDGE = 1 - 1e-10
"""Shrinks positions within a bin, so that float64 rounding cannot carry a point over its edge."""


@dataclass(frozen=True)
class _Bins:
    """The bins of levels 0, ..., count-1 in the model's coordinates; float64 throughout."""

    count: int
    width: Tensor
    shift: Tensor

    @classmethod
    def of(cls, levels: int, scale: Coefficient, shift: Coefficient, x: Tensor) -> _Bins:
        """Bins of the events of ``x``, on its device, from checked arguments."""
        count = check_integer("levels", levels, minimum=2)
        event = x.shape[1:]
        width = _coefficient("scale", scale, event, x.device, positive=True) / count
        return cls(count, width, _coefficient("shift", shift, event, x.device, positive=False))

    def point(self, k: Tensor, u: Tensor | float) -> Tensor:
        """The point at u ∈ [-½, ½] widths from the centre of bin k."""
        return self.shift + self.width * (k + 0.5 + u)

    def position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bin k of each point, the nearest one for points outside of the range, and u."""
        z = (x.to(torch.float64) - self.shift) / self.width
        k = z.floor().clamp(0, self.count - 1)
        return k, z - k - 0.5


def _check_levels(x: object, count: int) -> Tensor:
    """Integer levels ``(batch, *event)`` as float64."""
    x = check_tensor("x", x)
    if x.is_complex():
        raise TypeError(f"x: expected integer levels, got {describe(x)}; pass real numbers")
    k = check_state("x", x.to(torch.float64))
    expected = f"x: expected integers from 0 to {count - 1} (levels={count})"
    if not torch.equal(k, k.round()):
        raise ValueError(
            f"{expected}, got values such as {float(k[k != k.round()][0]):.6g}; undo the scaling "
            "first, e.g. (x * 255).round() for images in [0, 1]"
        )
    low, high = (int(end) for end in torch.aminmax(k))
    if low < 0 or high >= count:
        raise ValueError(
            f"{expected}, got values from {low} to {high}; pass the number of levels of the data"
        )
    return k


def _draw(law: Dequantization, k: Tensor, bins: _Bins, generator: torch.Generator | None) -> Tensor:
    """Positions u from ``law``, checked and kept off the edges of the bins."""
    if isinstance(law, type) or not hasattr(law, "sample"):
        raise TypeError(
            f"law: expected an object with sample(...) and log_prob(...), got {describe(law)}; "
            "pass an instance such as UniformDequantization()"
        )
    u = law.sample(bins.point(k, 0.0), bins.width, generator)
    if u.shape != k.shape or not bool((u.abs() <= 0.5).all()):
        raise ValueError(
            f"law: expected positions of shape {tuple(k.shape)} in [-1/2, 1/2], got {describe(u)} "
            f"of largest size {float(u.abs().max()):.3g}; measure u in bin widths from the centre"
        )
    return _OFF_THE_EDGE * u


def _round_within_bins(points: Tensor, k: Tensor, bins: _Bins, dtype: torch.dtype) -> Tensor:
    """``points`` in ``dtype``; those that rounding carries over an edge take a step back."""
    x = points.to(dtype)
    limits = torch.finfo(dtype)
    step = limits.eps * points.abs().clamp(min=limits.smallest_normal)
    back = points + step * torch.sign(bins.point(k, 0.0) - points)
    x = torch.where(bins.position(x)[0] == k, x, back.to(dtype))
    if not torch.equal(bins.position(x)[0], k):
        raise ValueError(
            f"x: expected a dtype that resolves bins of width {float(bins.width.min()):.3g}, "
            f"got {str(dtype).removeprefix('torch.')}; pass x.float() or x.double()"
        )
    return x


# --- data


def dequantize(
    x: Tensor,
    levels: int,
    *,
    scale: Coefficient = 1.0,
    shift: Coefficient = 0.0,
    law: Dequantization = UNIFORM,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Spread integer levels over their bins: x = shift + scale · (k + ½ + u) / levels, u ~ law.

    :func:`quantize` takes the result back to the very same levels, in every dtype.

    Args:
        x: Integer levels from 0 to levels-1, ``(batch, *event)``; any dtype with integer values.
        levels: Number of levels, 256 for 8-bit data.
        scale: Width of the range that all bins cover together, in the model's coordinates: 1 for
            [0, 1], 2 for [-1, 1]; a number, or a tensor that broadcasts to the event shape.
        shift: Lower end of that range, likewise.
        law: Law of the noise within a bin.
        generator: Source of the noise; torch's global one if None.

    Returns:
        Points in the model's coordinates, shaped like ``x``, in its dtype if that is floating and
        in torch's default dtype otherwise.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is empty, holds anything but integers from 0 to levels-1, or its dtype
            cannot resolve the bins.

    Example:
        >>> images = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = dequantize(images, 256, scale=2.0, shift=-1.0, generator=generator)
        >>> bool(((x >= -1) & (x <= 1)).all())
        True
        >>> quantize(x, 256, scale=2.0, shift=-1.0)
        tensor([[  0, 128, 255]])
    """
    k = _check_levels(x, check_integer("levels", levels, minimum=2))
    bins = _Bins.of(levels, scale, shift, k)
    u = _draw(law, k, bins, generator)
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return _round_within_bins(bins.point(k, u), k, bins, dtype)


def quantize(
    x: Tensor, levels: int, *, scale: Coefficient = 1.0, shift: Coefficient = 0.0
) -> Tensor:
    """The level whose bin holds each point: k = ⌊levels · (x − shift) / scale⌋.

    Points outside of the range, as a sampler may draw them, go to the nearest level.

    Args:
        x: Points in the model's coordinates, ``(batch, *event)``.
        levels: Number of levels.
        scale: Width of the whole range, see :func:`dequantize`.
        shift: Lower end of the range.

    Returns:
        Levels from 0 to levels-1, int64, shaped like ``x``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is empty or not finite.

    Example:
        >>> quantize(torch.tensor([[-1.2, -0.999, 0.0, 1.0]]), 256, scale=2.0, shift=-1.0)
        tensor([[  0,   0, 128, 255]])
    """
    x = check_state("x", x)
    return _Bins.of(levels, scale, shift, x).position(x)[0].long()


def dequantization_log_prob(
    x: Tensor,
    levels: int,
    *,
    scale: Coefficient = 1.0,
    shift: Coefficient = 0.0,
    law: Dequantization = UNIFORM,
) -> Tensor:
    """Log-density of a dequantized point given its level, in the model's coordinates.

        log q(x | k) = log q(u | k) − Σ_i log width_i,

    so that log p(x) − log q(x | k) is one log-weight of the bound on log P(k).

    Args:
        x: Dequantized points, ``(batch, *event)``; k is the level of the bin that holds the point.
        levels: Number of levels.
        scale: Width of the whole range, see :func:`dequantize`.
        shift: Lower end of the range.
        law: The law that the points were drawn from.

    Returns:
        log q(x | k) in nats, ``(batch,)``, float64; -inf outside of the range.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is empty or not finite.

    Example:
        >>> dequantization_log_prob(torch.tensor([[0.1, 0.7]]), 256) / math.log(2)
        tensor([16.], dtype=torch.float64)
    """
    x = check_state("x", x)
    bins = _Bins.of(levels, scale, shift, x)
    k, u = bins.position(x)
    return law.log_prob(u, bins.point(k, 0.0), bins.width) - bins.width.log().sum()


# --- numbers


def bits_per_dim(
    log_prob: Tensor,
    event_shape: Sequence[int],
    *,
    levels: int | None = None,
    scale: Coefficient | None = None,
) -> Tensor:
    """Negative log-likelihood in bits per dimension, in the units of the raw data.

        bits/dim = −log p(x) / (d ln 2) − (1/d) Σ_i log₂ width_i,    width = scale / levels.

    For integer data under uniform dequantization its mean bounds −log₂ P(k)/d from above; 256
    levels add 7 for data in [-1, 1] (scale=2) and 8 in [0, 1] (scale=1).  Without ``levels`` the
    data are continuous and width = scale is the factor of the affine map x = scale · raw + shift.

    Args:
        log_prob: Log-density of x in the model's coordinates, nats, ``(batch,)`` or any shape.
        event_shape: Shape of one x; d is its number of entries.
        levels: Number of levels of dequantized integer data; None for continuous data.
        scale: With ``levels``, the width of the range of all levels in the model's coordinates
            (required); without, the factor of the affine map (default 1).  A number, or a tensor
            that broadcasts to the event shape.

    Returns:
        Bits per dimension, shaped like ``log_prob``, in its dtype.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``levels`` comes without ``scale``, or a value is out of bounds.

    Example:
        >>> uniform = torch.tensor([-3 * math.log(2)])  # density of the cube [-1, 1]^3
        >>> bits_per_dim(uniform, (3,), levels=256, scale=2.0)
        tensor([8.])
        >>> bits_per_dim(uniform, (3,))
        tensor([1.])
    """
    log_prob = check_floating("log_prob", log_prob)
    event_shape = check_integers("event_shape", event_shape, minimum=1)
    if levels is not None and scale is None:
        raise ValueError(
            f"scale: expected the width of the data's range to go with levels={levels}, got None; "
            "pass 2.0 for data in [-1, 1] (offset 7 for 256 levels), 1.0 for [0, 1] (offset 8)"
        )
    count = 1 if levels is None else check_integer("levels", levels, minimum=2)
    whole = 1.0 if scale is None else scale
    width = _coefficient("scale", whole, event_shape, log_prob.device, positive=True) / count
    nats = -(log_prob.to(torch.float64) + width.log().sum())
    return (nats / (math.prod(event_shape) * math.log(2))).to(log_prob.dtype)


@dataclass(frozen=True)
class DequantizedBound:
    """A lower bound on log P(k) of integer data, from K draws of the dequantization noise.

    Attributes:
        log_prob: The bound in nats, ``(batch,)``: its expectation is at most log P(k).
        standard_error: Of ``log_prob`` over the draws, nats, ``(batch,)``, from the spread of the K
            weights (delta method); inf for K = 1, where one draw says nothing about its spread.
        event_shape: Shape of one sample.
        samples: K, the number of draws per sample.
    """

    log_prob: Tensor
    standard_error: Tensor
    event_shape: tuple[int, ...]
    samples: int

    @classmethod
    def from_log_weights(cls, log_weights: Tensor, event_shape: Sequence[int]) -> DequantizedBound:
        """The bound log (1/K) Σ_i exp(w_i) from log-weights w_i = log p(x_i) − log q(x_i | k).

        Args:
            log_weights: Nats, ``(K, batch)``; log q comes from :func:`dequantization_log_prob`.
            event_shape: Shape of one sample.

        Raises:
            TypeError: If ``log_weights`` is no floating-point tensor.
            ValueError: If it is empty or not two-dimensional.

        Example:
            >>> log_weights = torch.tensor([[-2.0, -1.0], [-2.0, -3.0]])
            >>> bound = DequantizedBound.from_log_weights(log_weights, event_shape=(5,))
            >>> bound.kind, bound.log_prob
            ('importance-weighted (K=2)', tensor([-2.0000, -1.5662]))
        """
        log_weights = check_floating("log_weights", log_weights)
        if log_weights.dim() != 2 or log_weights.numel() == 0:
            raise ValueError(
                f"log_weights: expected shape (K, batch), not empty, got {describe(log_weights)}; "
                "stack the K draws in the first dimension"
            )
        samples = len(log_weights)
        log_prob = torch.logsumexp(log_weights, 0) - math.log(samples)
        spread = ((log_weights - log_prob).exp() - 1).square().sum(0)
        error = (spread / (samples * (samples - 1))).sqrt()  # 0/0 for a single draw
        error = torch.where(error.isnan(), math.inf, error)
        return cls(log_prob, error, check_integers("event_shape", event_shape, 1), samples)

    @property
    def kind(self) -> str:
        """Which bound it is: ``"variational (K=1)"`` or ``"importance-weighted (K=...)"``."""
        name = "variational" if self.samples == 1 else "importance-weighted"
        return f"{name} (K={self.samples})"

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound as bits per dimension, ``(batch,)``: its mean is at least −log₂ P(k)/d."""
        return bits_per_dim(self.log_prob, self.event_shape)

    def __str__(self) -> str:
        """The batch in one line: mean bits/dim and the standard error of that mean."""
        bits = self.bits_per_dim.to(torch.float64)
        error = f" ± {bits.std() / math.sqrt(len(bits)):.4f}" if len(bits) > 1 else ""
        return f"{bits.mean():.4f}{error} bits/dim, {self.kind} bound, {len(bits)} sample(s)"


def dequantized_bound(
    log_density: Callable[[Tensor], Tensor],
    x: Tensor,
    levels: int,
    *,
    scale: Coefficient = 1.0,
    shift: Coefficient = 0.0,
    law: Dequantization = UNIFORM,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> DequantizedBound:
    """Bound log P(k) of integer data under a density from K draws of the dequantization noise.

        log P(k) ≥ E[log (1/K) Σ_i p(x_i) / q(x_i | k)],    x_i ~ q(· | k).

    The expectation rises with K; its gap to log P(k) falls like Var(p/q) / (2 K P(k)²).

    Args:
        log_density: x ``(batch, *event)`` in the model's coordinates → log p(x), ``(batch,)``,
            nats, a density with respect to dx.  If all that is known is the density p_t of
            α x + σ ε at t_min, pass ``lambda x: log_p_t(alpha * x) + d * log(alpha)``.
        x: Integer levels, ``(batch, *event)``.
        levels: Number of levels.
        scale: Width of the whole range, see :func:`dequantize`.
        shift: Lower end of the range.
        law: Law of the noise within a bin.
        samples: K, the number of draws and of calls of ``log_density``.
        generator: Source of the noise; torch's global one if None.

    Returns:
        The bound per sample, with its standard error and the name of the bound.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is no batch of integers below ``levels``, or ``log_density`` answers
            with another shape than ``(batch,)``.

    Example:
        >>> def log_density(x):  # uniform on [-1, 1]^3: each level has probability 1/256
        ...     return torch.full((len(x),), -3 * math.log(2))
        >>> levels = torch.randint(256, (10, 3), generator=torch.Generator().manual_seed(0))
        >>> print(dequantized_bound(log_density, levels, 256, scale=2.0, shift=-1.0, samples=4))
        8.0000 ± 0.0000 bits/dim, importance-weighted (K=4) bound, 10 sample(s)
    """
    log_weights = []
    for _ in range(check_integer("samples", samples, minimum=1)):
        point = dequantize(x, levels, scale=scale, shift=shift, law=law, generator=generator)
        log_p = check_floating("log_density(x)", log_density(point))
        if log_p.shape != point.shape[:1]:
            raise ValueError(
                f"log_density: expected values of shape ({len(point)},), one per sample, got "
                f"{describe(log_p)}; sum over the event dimensions"
            )
        log_q = dequantization_log_prob(point, levels, scale=scale, shift=shift, law=law)
        log_weights.append(log_p.to(torch.float64) - log_q)
    return DequantizedBound.from_log_weights(torch.stack(log_weights), tuple(x.shape[1:]))


# --- detection


_SAMPLES, _FEWEST, _CHANCE = 64, 16, 1e-12
"""Rows looked at, fewest values that tell anything, accepted chance of a false alarm."""


def looks_quantized(x: Tensor) -> bool:
    """Whether the values of ``x`` lie on a lattice that is far too coarse to be chance or rounding.

    Looked at are up to 64 different samples, all values together and each entry of the first event
    dimension (a channel, a column) on its own, since standardisation gives each its own lattice.
    A set of n values is on a lattice {v_0 + j h} if all are, up to rounding δ, where h is the
    smallest distance of two values or that over 2, ..., 8, and (2δ/h)^(n−2), the chance that
    unquantised values look so, is below 1e-12.  Integer tensors are quantised by definition.

    It cannot tell with fewer than 16 values, with lattices finer than about 1/1000 of the range in
    float32 (finer ones are found if h is a binary fraction, as in 16-bit sound), or in half
    precision beyond some 30 levels; then the answer is False.

    Args:
        x: Data, ``(batch, *event)``.

    Raises:
        TypeError: If ``x`` is no tensor.
        ValueError: If ``x`` is empty, without batch dimension or not finite.

    Example:
        >>> levels = torch.randint(256, (8, 3, 4), generator=torch.Generator().manual_seed(0))
        >>> looks_quantized(levels / 255), looks_quantized(dequantize(levels, 256))
        (True, False)
    """
    x = check_tensor("x", x)
    if not x.is_floating_point():
        return True
    rows = check_state("x", x.detach())[:_SAMPLES].to("cpu", torch.float64)
    rows = torch.unique(rows, dim=0)
    channels = rows.unbind(1) if rows.dim() > 1 else ()
    eps = torch.finfo(x.dtype).eps
    return any(_on_lattice(values, eps) for values in (rows, *channels))


def _on_lattice(values: Tensor, eps: float) -> bool:
    distinct = torch.unique(values)
    if values.numel() < _FEWEST or len(distinct) < 2:
        return False
    rounding = 4 * eps * distinct.abs().max()
    offsets = distinct - distinct[0]
    gaps = distinct.diff().min() / torch.arange(1, 9)
    steps = (offsets[-1] / (offsets[-1] / gaps).round()).unsqueeze(1)
    misses = (offsets - steps * (offsets / steps).round()).abs().amax(1)
    log_chance = (values.numel() - 2) * (2 * rounding / steps).clamp(max=1.0).log().squeeze(1)
    return bool(((misses <= rounding) & (log_chance < math.log(_CHANCE))).any())


def check_dequantized(name: str, x: Tensor) -> Tensor:
    """Refuse data that look quantised: a density of such data says nothing in bits per dimension.

    A density can be made arbitrarily large at finitely many levels, so its value there bounds the
    probability of nothing.

    Args:
        name: The argument's name in the message.
        x: Data, ``(batch, *event)``.

    Returns:
        ``x`` itself.

    Raises:
        TypeError: If ``x`` is no tensor.
        ValueError: If :func:`looks_quantized`.

    Example:
        >>> check_dequantized("x", torch.arange(32.0).reshape(8, 4))
        Traceback (most recent call last):
        ...
        ValueError: x: expected continuous data, got a float32 tensor of shape (8, 4) ...
    """
    if looks_quantized(x):
        raise ValueError(
            f"{name}: expected continuous data, got {describe(x)} whose values lie on a lattice; "
            "a density at quantised values can be arbitrarily large and bounds no probability, so "
            "bits/dim would mean nothing: spread the levels over their bins with dequantize(...), "
            "or ask dequantized_bound(...) for a bound on log P"
        )
    return x
