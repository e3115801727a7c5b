r"""Hutchinson's estimator: E vᵀJv = tr J for every law with E vvᵀ = I."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde._core.counter_rng import CounterRNG
from scoresde.traces.base import Tape, Trace, VectorField


class ProbeDistribution(ABC):
    """A law of probes with E vvᵀ = I; ``independent`` says whether those of one call are."""

    independent: bool = True

    @abstractmethod
    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        """Draw ``k`` probes for each of ``m`` rows, float64 ``(m, k, d)``."""

    def variance(self, jacobian: Tensor, k: int) -> Tensor | None:
        """Return the variance of the mean of ``k`` vᵀJv, ``()``; None if it is not known."""
        return None

    def resolved(self, k: int, d: int) -> int:
        """Return up to which rank of J that mean has no noise."""
        return 0


@dataclass(frozen=True)
class Rademacher(ProbeDistribution):
    """Independent signs: variance 2 Σ_{i≠j} J_ij² for symmetric J, none for a diagonal one."""

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        """Return signs."""
        return rng.signs((k, d))

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return 2 Σ_{i≠j} S_ij²/k, with S the symmetric part."""
        even = _symmetric(jacobian)
        return 2 * (even - even.diagonal().diag()).square().sum() / k


@dataclass(frozen=True)
class Gaussian(ProbeDistribution):
    """Standard normals: variance 2 ‖J‖² for symmetric J."""

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        """Return normals."""
        return rng.normals((k, d))

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return 2 ‖S‖²/k, with S the symmetric part."""
        return 2 * _symmetric(jacobian).square().sum() / k


@dataclass(frozen=True)
class Sphere(ProbeDistribution):
    """Uniform on the sphere of radius √d: no variance for a multiple of the identity."""

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        """Return points of the sphere."""
        v = rng.normals((k, d))
        return v * (d**0.5 / v.norm(dim=2, keepdim=True))

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return 2d/(d + 2) ‖S − (tr S/d) I‖²/k, with S the symmetric part."""
        return _on_the_sphere(jacobian) / k


@dataclass(frozen=True)
class Orthogonal(ProbeDistribution):
    """Uniform on the sphere and orthogonal to each other, at most d of them; exact for k = d.

    The k products are not independent, so that their mean counts as one estimate.

    References:
        Yu et al., *Orthogonal random features*, 2016, arXiv:1610.09072.
    """

    independent = False

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        """Return √d times the rows of a Haar orthogonal matrix."""
        if k > d:
            raise ValueError(
                f"probes: expected at most d = {d} orthogonal probes, got {k}; use ExactTrace"
            )
        q, r = torch.linalg.qr(rng.normals((d, k)))
        return (q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).mT * d**0.5

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return that of k independent ones times (d − k)/(d − 1): what the others have seen."""
        d = len(jacobian)
        return _on_the_sphere(jacobian) / k * (d - k) / max(d - 1, 1)

    def resolved(self, k: int, d: int) -> int:
        """Return d once the probes span, else 0."""
        return d if k == d else 0


def _symmetric(jacobian: Tensor) -> Tensor:
    return 0.5 * (jacobian + jacobian.mT)


def _on_the_sphere(jacobian: Tensor) -> Tensor:
    """Return the variance of vᵀJv for one v uniform on the sphere of radius √d."""
    d, even = len(jacobian), _symmetric(jacobian)
    shear = even - even.trace() / d * torch.eye(d, dtype=even.dtype, device=even.device)
    return 2 * d / (d + 2) * shear.square().sum()


RADEMACHER = Rademacher()


@dataclass(frozen=True)
class Hutchinson(Trace):
    r"""tr J ≈ (1/k) Σ vᵀJv with k random probes v.

    With the streams at a new position in every call, an integral along a path averages over fresh
    probes, several times less noisy than with the one fixed probe that is common practice.

    Args:
        probes: k, the number of probes in each call.
        law: the law of the probes: Rademacher(), Gaussian(), Sphere() or Orthogonal().

    Raises:
        ValueError: if ``probes`` is below 1.

    Example:
        >>> from scoresde._core.counter_rng import CounterRNG
        >>> rng = CounterRNG.draw(1, torch.Generator().manual_seed(0))
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> Hutchinson(probes=2)(lambda x: x**2, x, rng)[1]  # exact: the Jacobian is diagonal
        tensor([[12., 12.]])

    References:
        Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1989; Grathwohl
        et al., *FFJORD*, 2019, arXiv:1810.01367, eq. 7.
    """

    probes: int = 1
    law: ProbeDistribution = RADEMACHER
    linear = True

    def __post_init__(self) -> None:
        check_integer("probes", self.probes, minimum=1)
        if not isinstance(self.law, ProbeDistribution):
            raise TypeError(f"law: expected a law of probes such as Rademacher(), got {self.law!r}")

    def products(self, d: int) -> int:
        """Return the number of probes."""
        return self.probes

    def variance(self, jacobian: Tensor) -> Tensor | None:
        """Return that of the law's probes."""
        return self.law.variance(jacobian, self.probes)

    def resolved(self, d: int) -> int:
        """Return that of the law's probes."""
        return self.law.resolved(self.probes, d)

    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return h(x) ``(m, d)`` and an estimate per probe ``(m, k)``, or their mean ``(m, 1)``."""
        tape = Tape(field, x, differentiable, batched=self.probes > 1)
        probes = self.law.draw(rng, self.probes, x.shape[1]).to(x.dtype).transpose(0, 1)
        estimates = (tape.product(probes, last=True) * probes).sum(2).T
        return tape.value, estimates if self.law.independent else estimates.mean(1, keepdim=True)
