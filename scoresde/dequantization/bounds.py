"""Bits per dimension, and lower bounds on log P of integer data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_floating, check_integer, check_integers, summarize
from scoresde.dequantization.bins import (
    Coefficient,
    coefficient,
    dequantization_log_prob,
    dequantize,
)
from scoresde.dequantization.noise import UNIFORM, Dequantization


def bits_per_dim(
    log_prob: Tensor,
    event_shape: Sequence[int],
    *,
    levels: int | None = None,
    scale: Coefficient | None = None,
) -> Tensor:
    """Return the negative log-likelihood in bits per dimension, in the units of the raw data.

    ::

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
        ValueError: If ``levels`` is given without ``scale``, or a value is out of range.

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
            f"scale: expected the width of the data's range with levels={levels}, got None; "
            "pass 2.0 for data in [-1, 1] (offset 7 for 256 levels), 1.0 for [0, 1] (offset 8)"
        )
    count = 1 if levels is None else check_integer("levels", levels, minimum=2)
    total = 1.0 if scale is None else scale
    width = coefficient("scale", total, event_shape, log_prob.device, positive=True) / count
    nats = -(log_prob.to(torch.float64) + width.log().sum())
    return (nats / (math.prod(event_shape) * math.log(2))).to(log_prob.dtype)


def level_bits(
    log_prob: Tensor, event_shape: Sequence[int], own: int | None, levels: int | None
) -> Tensor:
    """Return −log₂ P per dimension of a probability of levels, which has no unit.

    Args:
        log_prob: log P(k) in nats, or a bound on it.
        event_shape: shape of one sample.
        own: the number of levels of the data, if it is known.
        levels: what the user passed; None or the same number.

    Raises:
        ValueError: if the two numbers differ.
    """
    if levels is not None and own is not None and levels != own:
        raise ValueError(
            f"levels: expected {own}, the levels of the data that this probability is of, got "
            f"{summarize(levels)}; leave levels out"
        )
    return bits_per_dim(log_prob, event_shape)


@dataclass(frozen=True)
class DequantizedBound:
    """A lower bound on log P(k) of integer data, from K samples of the dequantization noise.

    Attributes:
        log_prob: The bound in nats, ``(batch,)``: its expectation is at most log P(k).
        standard_error: Of ``log_prob`` over the noise, nats, ``(batch,)``, from the variance of the
            K weights (delta method); NaN for K = 1, which gives no estimate of the variance.
        event_shape: Shape of one sample.
        samples: K, the number of samples of the noise for each row.
        levels: Number of levels of the data, None if not given.
    """

    log_prob: Tensor
    standard_error: Tensor
    event_shape: tuple[int, ...]
    samples: int
    levels: int | None = None

    @classmethod
    def from_log_weights(
        cls, log_weights: Tensor, event_shape: Sequence[int], levels: int | None = None
    ) -> DequantizedBound:
        """Return the bound log (1/K) Σ_i exp(w_i) for w_i = log p(x_i) − log q(x_i | k).

        Args:
            log_weights: Nats, ``(K, batch)``; log q comes from :func:`dequantization_log_prob`.
            event_shape: Shape of one sample.
            levels: Number of levels of the data.

        Raises:
            TypeError: If ``log_weights`` is not a floating-point tensor.
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
                f"log_weights: expected shape (K, batch), not empty, got {summarize(log_weights)}; "
                "stack the K samples in the first dimension"
            )
        samples = len(log_weights)
        log_prob = torch.logsumexp(log_weights, 0) - math.log(samples)
        squares = ((log_weights - log_prob).exp() - 1).square().sum(0)
        error = (squares / (samples * (samples - 1))).sqrt()  # 0/0 for a single sample: NaN
        event = check_integers("event_shape", event_shape, 1)
        return cls(log_prob, error, event, samples, levels)

    @property
    def kind(self) -> str:
        """The name of the bound: ``"variational (K=1)"`` or ``"importance-weighted (K=...)"``."""
        name = "variational" if self.samples == 1 else "importance-weighted"
        return f"{name} (K={self.samples})"

    def bits_per_dim(
        self, *, levels: int | None = None, scale: Coefficient | None = None
    ) -> Tensor:
        """Return the upper bound on −log₂ P(k) per dimension, ``(batch,)``.

        Args:
            levels: Number of levels; None for those of the data, and no other number is possible.
            scale: Total width of the levels in the model's coordinates; P(k) does not depend on it.

        Returns:
            Bits per dimension ``(batch,)``, at least −log₂ P(k)/d in the mean.

        Raises:
            ValueError: If ``levels`` is not the number of levels of the data.
        """
        return level_bits(self.log_prob, self.event_shape, self.levels, levels)

    def __str__(self) -> str:
        """Return one line: mean bits/dim of the batch and the standard error of that mean."""
        bits = self.bits_per_dim().to(torch.float64)
        error = f" ± {bits.std() / math.sqrt(len(bits)):.4f}" if len(bits) > 1 else ""
        return f"{bits.mean():.4f}{error} bits/dim, {self.kind} bound, {len(bits)} sample(s)"


def dequantized_bound(
    log_density: Callable[[Tensor], Tensor],
    x: Tensor,
    levels: int,
    *,
    scale: Coefficient = 1.0,
    shift: Coefficient = 0.0,
    noise: Dequantization = UNIFORM,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> DequantizedBound:
    """Bound log P(k) of integer data under a density from K samples of the dequantization noise.

    ::

        log P(k) ≥ E[log (1/K) Σ_i p(x_i) / q(x_i | k)],    x_i ~ q(· | k).

    The expectation rises with K; its gap to log P(k) falls like Var(p/q) / (2 K P(k)²).

    Args:
        log_density: x ``(batch, *event)`` in the model's coordinates → log p(x), ``(batch,)``,
            nats, a density with respect to dx.  If only the density p_t of α x + σ ε
            at t_min is known, pass ``lambda x: log_p_t(alpha * x) + d * log(alpha)``.
        x: Integer levels, ``(batch, *event)``.
        levels: Number of levels.
        scale: Width of the whole range, see :func:`dequantize`.
        shift: Lower end of the range.
        noise: Distribution of the noise within a bin.
        samples: K, the number of samples of the noise and of calls of ``log_density``.
        generator: Source of randomness; torch's global one if None.

    Returns:
        The bound per sample, with its standard error and the name of the bound.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``x`` is not a batch of integers below ``levels``, or ``log_density``
            returns a shape other than ``(batch,)``.

    Example:
        >>> def log_density(x):  # uniform on [-1, 1]^3: each level has probability 1/256
        ...     return torch.full((len(x),), -3 * math.log(2))
        >>> levels = torch.randint(256, (10, 3), generator=torch.Generator().manual_seed(0))
        >>> print(dequantized_bound(log_density, levels, 256, scale=2.0, shift=-1.0, samples=4))
        8.0000 ± 0.0000 bits/dim, importance-weighted (K=4) bound, 10 sample(s)
    """
    log_weights = []
    for _ in range(check_integer("samples", samples, minimum=1)):
        point = dequantize(x, levels, scale=scale, shift=shift, noise=noise, generator=generator)
        log_p = check_floating("log_density(x)", log_density(point))
        if log_p.shape != point.shape[:1]:
            raise ValueError(
                f"log_density: expected values of shape ({len(point)},), one per sample, got "
                f"{summarize(log_p)}; sum over the event dimensions"
            )
        log_q = dequantization_log_prob(point, levels, scale=scale, shift=shift, noise=noise)
        log_weights.append(log_p.to(torch.float64) - log_q)
    return DequantizedBound.from_log_weights(torch.stack(log_weights), tuple(x.shape[1:]), levels)
