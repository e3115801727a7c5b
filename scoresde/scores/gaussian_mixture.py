r"""Gaussian mixtures: scores and densities in closed form.

If p_0 = Σ_k w_k N(m_k, C_k), every marginal of a Gaussian diffusion is a mixture again::

    p_t = Σ_k w_k N(α m_k, Σ_k),        Σ_k = α² C_k + σ² I,

and with the responsibilities r_k(x) ∝ w_k N(x; α m_k, Σ_k) and s_k = −Σ_k^{-1}(x − α m_k)::

    s = Σ_k r_k s_k,        ∇·s = Σ_k r_k (|s_k − s|² − tr Σ_k^{-1}).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from scoresde._core.checks import (
    check_floating,
    check_instance,
    check_integer,
    check_positive,
    check_state,
)
from scoresde._core.modules import FixedDtypeModule
from scoresde._core.random import normal, uniform
from scoresde._core.shapes import Time, as_time, check_batch, check_data, flatten
from scoresde.operators import LinearOperator
from scoresde.scores import PredictionScore
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import SCORE
from scoresde.sdes import GaussianSDE


class _Components(NamedTuple):
    """Densities and scores of the components at the points of a batch; float64."""

    log_weighted: Tensor  # (batch, K)   log w_k N(x; α m_k, Σ_k)
    scores: Tensor  # (batch, K, d)      s_k
    precision_trace: Tensor  # (batch or 1, K)   tr Σ_k^{-1}


class GaussianMixture(FixedDtypeModule, PredictionScore):
    r"""A mixture of Gaussians under any Gaussian diffusion: exact score, density and samples.

    All is computed in float64 and in the log domain, accurate for points far from the data and for
    components of tiny weight; results have the dtype of ``x``.

    Args:
        weights: ``(K,)``, positive; normalized to sum to one.
        means: ``(K, D)``, or ``(K, *event)`` for other event shapes, with D the number of elements.
        covariances: ``(K, D, D)``, symmetric and positive definite.
        sde: the diffusion.

    Raises:
        ValueError: if shapes do not fit, a weight is not positive, or a covariance is not symmetric
            positive definite.

    Example:
        >>> from scoresde import VPSDE
        >>> means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> mixture = GaussianMixture(
        ...     torch.ones(2), means, 0.1 * torch.eye(2).expand(2, 2, 2), VPSDE()
        ... )
        >>> x = mixture.sample(4, generator=torch.Generator().manual_seed(0))
        >>> x.shape, mixture.log_prob(x).shape, mixture.divergence(x, 0.5).shape
        (torch.Size([4, 2]), torch.Size([4]), torch.Size([4]))
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    _log_weights: Tensor
    _eigenvalues: Tensor
    _eigenvectors: Tensor

    def __init__(
        self, weights: Tensor, means: Tensor, covariances: Tensor, sde: GaussianSDE
    ) -> None:
        weights, means, covariances = (
            torch.as_tensor(v).detach().to(torch.float64) for v in (weights, means, covariances)
        )
        _check_mixture(weights, means, covariances)
        weights = weights / weights.sum()
        super().__init__(sde, SCORE, _mixture_moments(weights, means, covariances))
        check_instance("sde", sde, GaussianSDE, "VPSDE()")
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances)
        if not bool((eigenvalues > 0).all()):
            raise ValueError(
                "covariances: expected positive definite matrices, got a smallest eigenvalue of "
                f"{float(eigenvalues.min()):g}; add a small multiple of the identity"
            )
        for name, value in (
            ("weights", weights),
            ("means", means),
            ("covariances", covariances),
            ("_log_weights", weights.log()),
            ("_eigenvalues", eigenvalues),
            ("_eigenvectors", eigenvectors),
        ):
            self.register_buffer(name, value.clone())

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one sample."""
        return self.means.shape[1:]

    def log_prob(self, x: Tensor, t: Time = 0.0) -> Tensor:
        """Return log p_t(x) in nats ``(batch,)`` for ``x`` ``(batch, *event)``."""
        check_data("x", x)
        return torch.logsumexp(self._components(x, t).log_weighted, dim=1).to(x.dtype)

    def output(self, x: Tensor, t: Time) -> Tensor:
        """Return the score s = ∇ log p_t(x), shaped like ``x``; defined at t = 0 too."""
        components = self._components(x, t)
        responsibilities = torch.softmax(components.log_weighted, dim=1)
        score = torch.einsum("bk,bkd->bd", responsibilities, components.scores)
        return score.reshape(x.shape).to(x.dtype)

    def divergence(self, x: Tensor, t: Time) -> Tensor:
        """Return ∇·s = Δ log p_t(x), the trace of the score's Jacobian, ``(batch,)``."""
        components = self._components(x, t)
        responsibilities = torch.softmax(components.log_weighted, dim=1)
        mean = torch.einsum("bk,bkd->bd", responsibilities, components.scores)
        deviation = (components.scores - mean.unsqueeze(1)).square().sum(2)
        return (responsibilities * (deviation - components.precision_trace)).sum(1).to(x.dtype)

    def sample(
        self,
        n: int,
        t: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return ``n`` exact samples of p_t, ``(n, *event)``.

        Args:
            n: their number.
            t: the time, in [0, T].
            generator: source of randomness; None for PyTorch's global one.
            dtype: of the result; PyTorch's default if None.
        """
        check_integer("n", n, minimum=1)
        time = as_time(t, self.sde.T)
        alpha, sigma = (float(v(time)) for v in (self.sde.alpha, self.sde.sigma))
        device, d = self.means.device, self._eigenvalues.shape[1]
        levels = uniform((n,), generator=generator, dtype=torch.float64, device=device)
        edges = self.weights.cumsum(0)[:-1].contiguous()
        k = torch.searchsorted(edges, levels, right=True)
        noise = normal((n, d), generator=generator, dtype=torch.float64, device=device)
        scaled = noise * torch.sqrt(alpha**2 * self._eigenvalues[k] + sigma**2)
        x = alpha * self.means.reshape(len(self.weights), d)[k]
        for component in k.unique():
            chosen = k == component
            x[chosen] += scaled[chosen] @ self._eigenvectors[component].T
        return x.reshape(n, *self.event_shape).to(dtype or torch.get_default_dtype())

    def posterior(self, operator: LinearOperator, y: Tensor, noise_std: float) -> GaussianMixture:
        r"""Return the posterior of x_0 given y = A x_0 + σ_y n: a mixture again.

        ::

            K_k = C_k Aᵀ S_k^{-1},    S_k = A C_k Aᵀ + σ_y² I,
            m_k ← m_k + K_k (y − A m_k),    C_k ← (1 − K_k A) C_k,    w_k ← w_k N(y; A m_k, S_k).

        Args:
            operator: A.
            y: one observation, of the observed shape.
            noise_std: σ_y > 0.

        Returns:
            The mixture, under the same diffusion; components whose weight underflows are left out.

        Raises:
            ValueError: if y does not have the observed shape, or σ_y is not positive.

        Example:
            >>> from scoresde import VPSDE
            >>> from scoresde.operators import Matrix
            >>> prior = GaussianMixture(
            ...     torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], VPSDE()
            ... )
            >>> total = Matrix(torch.ones(1, 2))
            >>> prior.posterior(total, torch.ones(1), noise_std=1.0).means
            tensor([[0.3333, 0.3333]], dtype=torch.float64)
        """
        check_floating("y", y)
        a, observed, log_weighted = self._observe(operator, y.unsqueeze(0), noise_std)
        weights = torch.softmax(log_weighted[0], 0)
        gain = torch.linalg.solve(observed, a @ self.covariances).mT  # the Kalman gain K_k
        means = flatten(self.means)
        innovation = flatten(y.to(a).unsqueeze(0)) - means @ a.T
        means = means + torch.einsum("kdm,km->kd", gain, innovation)
        # Joseph's form, a sum of squares, is positive in floating point too
        rest = torch.eye(a.shape[1], dtype=a.dtype, device=a.device) - gain @ a  # 1 − K_k A
        covariances = rest @ self.covariances @ rest.mT + noise_std**2 * gain @ gain.mT
        likely = weights > 0
        return GaussianMixture(
            weights[likely],
            means.reshape(self.means.shape)[likely],
            (0.5 * (covariances + covariances.mT))[likely],
            self.sde,
        )

    def evidence(self, operator: LinearOperator, y: Tensor, noise_std: float) -> Tensor:
        r"""Return log p(y) of y = A x_0 + σ_y n: log Σ_k w_k N(y; A m_k, A C_k Aᵀ + σ_y² I).

        Args:
            operator: A.
            y: observations ``(batch, *observed)``.
            noise_std: σ_y > 0.

        Returns:
            In nats, ``(batch,)``, in the dtype of ``y``.

        Raises:
            ValueError: if y does not have the observed shape, or σ_y is not positive.

        Example:
            >>> from scoresde import VPSDE
            >>> from scoresde.operators import Matrix
            >>> means, covariances = torch.zeros(1, 2), torch.eye(2).unsqueeze(0)
            >>> prior = GaussianMixture(torch.ones(1), means, covariances, VPSDE())
            >>> prior.evidence(Matrix(torch.ones(1, 2)), torch.zeros(1, 1), 1.0)  # log N(0; 0, 3)
            tensor([-1.4682])
        """
        log_weighted = self._observe(operator, check_data("y", y), noise_std)[2]
        return torch.logsumexp(log_weighted, 1).to(y.dtype)

    def _observe(
        self, operator: LinearOperator, y: Tensor, noise_std: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return A ``(m, d)``, S_k ``(K, m, m)`` and log w_k N(y; A m_k, S_k) ``(batch, K)``."""
        check_instance("operator", operator, LinearOperator, "Mask(mask)")
        check_positive("noise_std", noise_std, "take a small one: y then has a density")
        check_state("y", y, operator.observed_shape(self.event_shape))
        a = operator.matrix(self.event_shape)
        observed = a @ self.covariances @ a.T
        observed = 0.5 * (observed + observed.mT) + noise_std**2 * torch.eye(len(a)).to(a)
        evidence = MultivariateNormal(flatten(self.means) @ a.T, observed)
        log_prob = evidence.log_prob(flatten(y).to(a).unsqueeze(1))
        return a, observed, self._log_weights + log_prob

    def _components(self, x: Tensor, t: Time) -> _Components:
        time = as_time(t, self.sde.T)
        check_batch(time, x)
        if x.shape[1:] != self.event_shape:
            expected = ", ".join(map(str, ("batch", *self.event_shape)))
            raise ValueError(
                f"x: expected shape ({expected}) as the means have it, got {tuple(x.shape)}; one "
                "row per sample"
            )
        alpha = self.sde.alpha(time).to(x.device).reshape(-1, 1, 1)
        sigma = self.sde.sigma(time).to(x.device).reshape(-1, 1, 1)
        means = self.means.reshape(len(self.weights), -1)
        centered = flatten(x).to(torch.float64).unsqueeze(1) - alpha * means
        rotated = torch.einsum("bkd,kde->bke", centered, self._eigenvectors)
        variance = alpha**2 * self._eigenvalues + sigma**2
        solved = rotated / variance
        quadratic = (rotated * solved).sum(2)
        log_volume = variance.log().sum(2) + means.shape[1] * math.log(2 * math.pi)
        return _Components(
            self._log_weights - 0.5 * (quadratic + log_volume),
            -torch.einsum("bke,kde->bkd", solved, self._eigenvectors),
            (1 / variance).sum(2),
        )


def _check_mixture(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    if weights.ndim != 1 or not bool((weights > 0).all()) or not bool(weights.isfinite().all()):
        raise ValueError(
            f"weights: expected a tensor (K,) of positive numbers, got {weights}; leave out a "
            "component of weight zero"
        )
    if means.ndim < 1 or means.shape[0] != len(weights) or not bool(means.isfinite().all()):
        raise ValueError(
            f"means: expected finite, shape ({len(weights)}, *event), got {tuple(means.shape)}"
        )
    d = math.prod(means.shape[1:])
    if covariances.shape != (len(weights), d, d):
        raise ValueError(
            f"covariances: expected shape {(len(weights), d, d)} to go with means of shape "
            f"{tuple(means.shape)}, got {tuple(covariances.shape)}; for a diagonal use "
            "torch.diag_embed"
        )
    if not torch.allclose(covariances, covariances.mT, rtol=1e-6, atol=1e-12):
        raise ValueError("covariances: expected symmetric matrices; use (C + C.mT) / 2")


def _mixture_moments(weights: Tensor, means: Tensor, covariances: Tensor) -> Moments:
    mean = torch.einsum("k,k...->...", weights, means)
    centered = (means - mean).reshape(len(weights), -1)
    between = torch.einsum("k,kd,ke->de", weights, centered, centered)
    return Moments.from_covariance(mean, torch.einsum("k,kde->de", weights, covariances) + between)
