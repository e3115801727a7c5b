r"""Mixtures with a known score, and their probability flow to ten digits.

Everything is written in VE coordinates, y = x/α and ρ = σ/α, in which all Gaussian diffusions have
one flow, dy/dρ = (y − D(y; ρ))/ρ with D = E[x_0 | y]: VP, sub-VP and VE, and the schedules of other
libraries, differ in its first and last ρ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde import EDMSDE, GaussianMixture, GaussianSDE

_SMALL = 1e-4
"""From this ρ on, a half step to ρ = 0 is more accurate than the integration."""


@dataclass(frozen=True)
class Problem:
    """A mixture, and the number of samples of the distribution tests.

    Attributes:
        name: its name in tables.
        parts: weights ``(K,)``, means ``(K, d)``, covariances ``(K, d, d)``.
        samples: N of the distribution tests.
    """

    name: str
    parts: tuple[Tensor, Tensor, Tensor]
    samples: int = 20_000

    @property
    def dimension(self) -> int:
        """Return d."""
        return self.parts[1].shape[1]

    def mixture(self, sde: GaussianSDE) -> GaussianMixture:
        """Return the score under a diffusion."""
        return GaussianMixture(*self.parts, sde)

    @cached_property
    def data(self) -> GaussianMixture:
        """The mixture in VE coordinates, t = ρ."""
        return self.mixture(EDMSDE(sigma_min=1e-9, sigma_max=1e4))

    def denoised(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        """Return D(y; ρ), which all methods evaluate, in the dtype of ``y`` ``(n, d)``.

        D = y − ρ² Σ_k r_k (C_k + ρ²)⁻¹ (y − m_k), with r_k(y) the responsibilities.
        """
        weights, means, _ = self.parts
        values, vectors = self._spectra
        total = values + float(ratio) ** 2
        precisions = ((vectors / total.unsqueeze(1)) @ vectors.mT).to(y.dtype)
        heights = (torch.log(weights) - 0.5 * total.log().sum(1)).to(y.dtype)
        centered = y.unsqueeze(0) - means.to(y.dtype).unsqueeze(1)
        whitened = centered @ precisions  # (K, n, d)
        logits = heights.unsqueeze(1) - 0.5 * (centered * whitened).sum(2)
        weights_at = torch.softmax(logits, dim=0)
        return y - float(ratio) ** 2 * torch.einsum("kn,knd->nd", weights_at, whitened)

    @cached_property
    def _spectra(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self.parts[2])


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid25() -> Problem:
    """Return 25 narrow modes on a grid in the plane, with unequal weights."""
    line = torch.arange(-2.0, 3.0, dtype=torch.float64)
    weights = 0.5 + torch.rand(25, generator=_seeded(0), dtype=torch.float64)
    covariances = 0.05**2 * torch.eye(2, dtype=torch.float64).expand(25, 2, 2)
    return Problem("grid25", (weights, torch.cartesian_prod(line, line), covariances))


def gmm16() -> Problem:
    """Return 10 components in 16 dimensions, standard deviations from 0.1 to 0.3."""
    generator = _seeded(1)
    means = 0.75 * torch.randn(10, 16, generator=generator, dtype=torch.float64)
    stds = 0.1 + 0.2 * torch.rand(10, 16, generator=generator, dtype=torch.float64)
    return Problem("gmm16", (torch.ones(10), means, torch.diag_embed(stds**2)))


def lr64() -> Problem:
    """Return 4 components in 64 dimensions, covariance of rank 8 plus a thin diagonal."""
    generator = _seeded(2)
    means = 0.6 * torch.randn(4, 64, generator=generator, dtype=torch.float64)
    wide = 0.6 / math.sqrt(8) * torch.randn(4, 64, 8, generator=generator, dtype=torch.float64)
    stds = 0.05 + 0.05 * torch.rand(4, 64, generator=generator, dtype=torch.float64)
    covariances = wide @ wide.mT + torch.diag_embed(stds**2)
    return Problem("lr64", (torch.ones(4), means, covariances), samples=4000)


def held_out() -> tuple[Problem, ...]:
    """Return problems that were not used to choose settings, with other scales and widths."""
    generator = _seeded(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    eye = torch.eye(8, dtype=torch.float64)
    rotation = torch.linalg.qr(normal(6, 8, 8))[0]
    wide = rotation @ torch.diag(torch.logspace(-1.5, 0, 8, dtype=torch.float64) ** 2) @ rotation.mT
    angle = torch.arange(12, dtype=torch.float64) * (math.tau / 12)
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    return (
        Problem("ring", (torch.ones(12), ring, 0.02**2 * eye[:2, :2].expand(12, 2, 2))),
        Problem("smooth8", (torch.ones(5), normal(5, 8) / 2, 0.25 * eye.expand(5, 8, 8))),
        Problem("aniso8", (torch.ones(6), normal(6, 8), 0.5 * (wide + wide.mT))),
        Problem("large8", (torch.ones(5), 8 * normal(5, 8), 0.5 * eye.expand(5, 8, 8))),
    )


PROBLEMS = (grid25(), gmm16(), lr64())


@dataclass
class Reference:
    """The flow of a problem from given starts, by SciPy's DOP853 at 1e-10.

    Attributes:
        problem: the problem.
        noise: the starts are y = ρ_T · ``noise``, ``(n, d)``.
    """

    problem: Problem
    noise: Tensor
    known: dict[float, dict[float, Tensor]] = field(default_factory=dict)

    def __call__(self, start: float, end: float) -> Tensor:
        """Return where the paths from ρ = ``start`` are at ρ = ``end``, 0 included."""
        states = self.known.setdefault(start, {start: start * self.noise})
        target = max(end, _SMALL)
        if target not in states:
            nearest = min(ratio for ratio in states if ratio > target)
            states[target] = self._integrate(states[nearest], nearest, target)
        y = states[target]
        slope = (self.problem.denoised(y, target) - y) / target**2
        return y + 0.5 * (target**2 - end**2) * slope

    def _integrate(self, y: Tensor, start: float, end: float) -> Tensor:
        """Solve in z = y/√(b² + ρ²) and the angle atan(ρ/b), b the scale of the data."""
        scale = math.sqrt(float(self.problem.data.moments.variance.mean()))

        def field(angle: float, z: np.ndarray) -> np.ndarray:
            ratio = scale * math.tan(angle)
            size = math.hypot(scale, ratio)
            here = size * torch.from_numpy(z).reshape(y.shape)
            slope = (here - self.problem.denoised(here, ratio)) / ratio
            total = slope / size - ratio * here / size**3
            return (total * size**2 / scale).numpy().ravel()

        ends = math.atan(start / scale), math.atan(end / scale)
        first = (y / math.hypot(scale, start)).numpy().ravel()
        solution = solve_ivp(field, ends, first, method="DOP853", rtol=1e-10, atol=1e-10)
        return math.hypot(scale, end) * torch.from_numpy(solution.y[:, -1]).reshape(y.shape)
