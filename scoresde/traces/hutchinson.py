"""Hutchinson's estimator: E vᵀJv = tr J for every probe distribution with E vvᵀ = I."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from scoresde._core.checks import check_instance, check_integer
from scoresde._core.counter_rng import CounterRNG
from scoresde.traces.base import Tape, Trace, VectorField


class ProbeDistribution(ABC):
    """A distribution of probes v with E vvᵀ = I."""

    independent: bool = True
    """Whether the probes of one call are independent."""

    @abstractmethod
    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        """Draw ``k`` probes for each of ``m`` rows, float64 ``(m, k, d)``."""

    def variance(self, jacobian: Tensor, k: int) -> Tensor | None:
        """Return the variance of the mean of ``k`` vᵀJv, ``()``; None if it is not known."""
        return None

    def exact_rank(self, k: int, d: int) -> int:
        """Return the largest rank of J up to which that mean is exact; 0 if not declared."""
        return 0


@dataclass(frozen=True)
class Rademacher(ProbeDistribution):
    """Independent signs ±1: variance 2 Σ_{i≠j} J_ij² for symmetric J, zero for a diagonal J."""

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        return rng.signs((k, d))

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return 2 Σ_{i≠j} S_ij²/k, with S the symmetric part."""
        symmetric = _symmetric(jacobian)
        return 2 * (symmetric - symmetric.diagonal().diag()).square().sum() / k


@dataclass(frozen=True)
class Gaussian(ProbeDistribution):
    """Independent standard normals: variance 2 ‖J‖² (Frobenius) for symmetric J."""

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        return rng.normals((k, d))

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return 2 ‖S‖²/k, with S the symmetric part."""
        return 2 * _symmetric(jacobian).square().sum() / k


@dataclass(frozen=True)
class Sphere(ProbeDistribution):
    """Uniform on the sphere of radius √d: zero variance for a multiple of the identity."""

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        v = rng.normals((k, d))
        scale: Tensor = d**0.5 / v.norm(dim=2, keepdim=True)
        return v * scale

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return 2d/(d + 2) ‖S − (tr S/d) I‖²/k, with S the symmetric part."""
        return _sphere_variance(jacobian) / k


@dataclass(frozen=True)
class Orthogonal(ProbeDistribution):
    """Mutually orthogonal, each uniform on the sphere of radius √d; at most d; exact for k = d.

    The k products are not independent, so their mean counts as one estimate.

    References:
        Yu et al., *Orthogonal random features*, 2016, arXiv:1610.09072.
    """

    independent = False

    def draw(self, rng: CounterRNG, k: int, d: int) -> Tensor:
        """Return √d times k rows of a Haar-distributed orthogonal matrix."""
        if k > d:
            raise ValueError(
                f"probes: expected at most d = {d} orthogonal probes, got {k}; use ExactTrace"
            )
        q, r = torch.linalg.qr(rng.normals((d, k)))
        rows: Tensor = (q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).mT
        return rows * float(d**0.5)

    def variance(self, jacobian: Tensor, k: int) -> Tensor:
        """Return the variance of k independent probes times (d − k)/(d − 1)."""
        d = len(jacobian)
        return _sphere_variance(jacobian) / k * (d - k) / max(d - 1, 1)

    def exact_rank(self, k: int, d: int) -> int:
        """Return d if k = d, else 0."""
        return d if k == d else 0


def _symmetric(jacobian: Tensor) -> Tensor:
    return 0.5 * (jacobian + jacobian.mT)


def _sphere_variance(jacobian: Tensor) -> Tensor:
    """Return the variance of vᵀJv for one v uniform on the sphere of radius √d."""
    d, symmetric = len(jacobian), _symmetric(jacobian)
    identity = torch.eye(d, dtype=jacobian.dtype, device=jacobian.device)
    deviator = symmetric - symmetric.trace() / d * identity
    return 2 * d / (d + 2) * deviator.square().sum()


RADEMACHER = Rademacher()

_BY_NAME = {
    "rademacher": RADEMACHER,
    "gaussian": Gaussian(),
    "sphere": Sphere(),
    "orthogonal": Orthogonal(),
}


@dataclass(frozen=True)
class Hutchinson(Trace):
    r"""tr J ≈ (1/k) Σ vᵀJv with k random probes v.

    With new probes at every evaluation, an integral along a path averages over many probes. It is
    several times less noisy than with the common choice of one fixed probe.

    Args:
        probes: k, the number of probes in each call.
        law: the distribution of the probes: Rademacher(), Gaussian(), Sphere() or Orthogonal(), or
            its name ``"rademacher"``, ``"gaussian"``, ``"sphere"`` or ``"orthogonal"``.

    Raises:
        TypeError: if ``law`` is not a probe distribution or a name.
        ValueError: if ``probes`` is below 1 or the name is unknown.

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
    law: ProbeDistribution | Literal["rademacher", "gaussian", "sphere", "orthogonal"] = RADEMACHER
    linear = True

    def __post_init__(self) -> None:
        check_integer("probes", self.probes, minimum=1)
        distribution: object = self.law
        if isinstance(distribution, str):
            if distribution not in _BY_NAME:
                names = ", ".join(f'"{name}"' for name in _BY_NAME)
                raise ValueError(
                    f"law: expected a ProbeDistribution such as Rademacher() or one of the names "
                    f"{names}, got {distribution!r}; check the spelling"
                )
            distribution = _BY_NAME[distribution]
        object.__setattr__(
            self, "law", check_instance("law", distribution, ProbeDistribution, "Rademacher()")
        )

    @property
    def distribution(self) -> ProbeDistribution:
        """The distribution of the probes: ``law`` as an object."""
        return cast(ProbeDistribution, self.law)

    def products(self, d: int) -> int:
        return self.probes

    def variance(self, jacobian: Tensor) -> Tensor | None:
        return self.distribution.variance(jacobian, self.probes)

    def exact_rank(self, d: int) -> int:
        return self.distribution.exact_rank(self.probes, d)

    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return h(x) ``(m, d)`` and one estimate per probe ``(m, k)``.

        Probes that are not independent yield their mean ``(m, 1)``.
        """
        tape = Tape(field, x, differentiable, batched=self.probes > 1)
        probes = self.distribution.draw(rng, self.probes, x.shape[1]).to(x.dtype).transpose(0, 1)
        estimates = (tape.product(probes, last=True) * probes).sum(2).T
        if self.distribution.independent:
            return tape.value, estimates
        return tape.value, estimates.mean(1, keepdim=True)
