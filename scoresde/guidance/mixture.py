"""Mixtures of densities: scores weighted by the responsibilities of the components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde._core.checks import check_tensor
from scoresde._core.shapes import Time, as_time
from scoresde.scores import Combination, Moments, Score
from scoresde.scores.combination import check_scores

LogDensity = Callable[[Tensor, Tensor], Tensor]
"""log p_t(x) ``(batch,)`` of ``x`` ``(batch, *event)`` at ``t``, row by row."""


class Mixture(Combination):
    r"""The score of Σ_i w_i p_{i,t}, exact at every noise level.

    ::

        s = Σ_i r_i s_i,    r_i = w_i p_{i,t}(x) / Σ_j w_j p_{j,t}(x).

    Noising and mixing commute: if the parts are the noised versions of p_i, this is the noised
    version of Σ_i w_i p_i, and samples and likelihoods are those of the mixture. The
    responsibilities need the log-densities of the parts at every noise level: in closed form, or
    for a network by :func:`~scoresde.log_likelihood` with ``t_min=t`` at every evaluation, which is
    slow. An average of scores with constant weights is a product
    (:class:`~scoresde.guidance.Product`), not a mixture.

    Args:
        scores: the parts, over one diffusion.
        weights: ``(K,)``, positive; normalized to sum to one. Equal by default.
        log_probs: log p_{i,t}(x), a function ``(x, t) -> (batch,)`` for each part, differentiable
            if likelihoods are needed; the parts' own ``log_prob`` by default.
        moments: mean and covariance of the data, if known; by default those of the mixture if those
            of all parts are known.

    Raises:
        TypeError: if a part is not a Score, or its density is not known.
        ValueError: if weights are not K positive numbers, or the parts' diffusions differ.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE
        >>> sde, eye = VPSDE(), torch.eye(2).unsqueeze(0)
        >>> parts = [
        ...     GaussianMixture(torch.ones(1), m * torch.ones(1, 2), eye, sde) for m in (-1, 1)
        ... ]
        >>> mixture = Mixture(parts, [1.0, 3.0])
        >>> x = torch.zeros(1, 2)
        >>> mixture(x, 0.0), mixture.log_prob(x), mixture.log_responsibilities(x, 0.0).exp()
        (tensor([[0.5000, 0.5000]]), tensor([-2.8379]), tensor([[0.2500, 0.7500]]))

    References:
        Du et al., *Reduce, reuse, recycle*, 2023, arXiv:2302.11552 (mixtures among compositions).
    """

    def __init__(
        self,
        scores: Sequence[Score],
        weights: Sequence[float] | Tensor | None = None,
        log_probs: Sequence[LogDensity] | None = None,
        moments: Moments | None = None,
    ) -> None:
        super().__init__(scores, moments)
        count = len(self.scores)
        given = [1.0] * count if weights is None else weights
        self.weights = _check_weights(torch.as_tensor(given, dtype=torch.float64), count)
        self.log_probs = None if log_probs is None else list(log_probs)
        self._densities = _check_densities(self.log_probs, check_scores(scores))
        if moments is None:
            self.moments = _moments(scores, self.weights) or self.moments

    def log_prob(self, x: Tensor, t: Time = 0.0) -> Tensor:
        """Return log Σ_i w_i p_{i,t}(x) in nats ``(batch,)`` for ``x`` ``(batch, *event)``."""
        return torch.logsumexp(self._log_weighted(x, t), dim=1).to(x.dtype)

    def log_responsibilities(self, x: Tensor, t: Time) -> Tensor:
        """Return log r_i, the log-probability of each part given x_t = x, ``(batch, K)``.

        It is the exact noise-conditional classifier of what part a point is from.
        """
        return torch.log_softmax(self._log_weighted(x, t), dim=1).to(x.dtype)

    def weights_at(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Return the responsibilities r_i, each ``(batch,)``."""
        return list(torch.softmax(self._log_weighted(x, t), dim=1).unbind(1))

    def select(self, index: Tensor | slice) -> Mixture:
        scores = [part.select(index) for part in self.scores]  # type: ignore[operator]
        if all(new is old for new, old in zip(scores, self.scores, strict=True)):
            return self
        return Mixture(scores, self.weights, self.log_probs, self.moments)

    def extra_repr(self) -> str:
        return f"weights={[round(w, 4) for w in self.weights.tolist()]}"

    def _log_weighted(self, x: Tensor, t: Time) -> Tensor:
        """Return log w_i p_{i,t}(x) ``(batch, K)``, float64."""
        time = as_time(t, self.sde.T)
        values = [
            _one_per_row(k, log_prob(x, time), x) for k, log_prob in enumerate(self._densities)
        ]
        return torch.stack(values, dim=1).double() + self.weights.to(x.device).log()


def _check_weights(weights: Tensor, count: int) -> Tensor:
    if weights.shape != (count,) or not bool(((weights > 0) & weights.isfinite()).all()):
        raise ValueError(
            f"weights: expected {count} positive finite numbers, one for each score, got "
            f"{weights}; omit parts of weight zero"
        )
    return weights / weights.sum()


def _check_densities(given: list[LogDensity] | None, scores: list[Score]) -> list[LogDensity]:
    known = [getattr(part, "log_prob", None) for part in scores] if given is None else given
    if len(known) != len(scores):
        raise ValueError(
            f"log_probs: expected one function for each of {len(scores)} scores, got {len(known)}"
        )
    for k, density in enumerate(known):
        if not callable(density):
            raise TypeError(
                f"log_probs[{k}]: expected a function (x, t) -> log p_t(x), got {density!r}, and "
                f"{type(scores[k]).__name__} has no log_prob; a mixture needs all densities "
                "(Product averages scores without them, which is another distribution)"
            )
    return known  # type: ignore[return-value]


def _one_per_row(k: int, value: Tensor, x: Tensor) -> Tensor:
    if check_tensor(f"log_probs[{k}]", value).shape != x.shape[:1]:
        raise ValueError(
            f"log_probs[{k}]: expected one log-density per sample, shape ({x.shape[0]},), got "
            f"{tuple(value.shape)}"
        )
    return value


def _moments(scores: Sequence[Score], weights: Tensor) -> Moments | None:
    """Return the mixture's mean and covariance, if those of all parts are known."""
    parts: list[Any] = [part.moments for part in scores]
    first = parts[0]
    for part in parts:
        if not part.known or part.basis is None or part.mean.shape != first.mean.shape:
            return None
    mean = torch.stack([w * part.mean for w, part in zip(weights, parts, strict=True)]).sum(0)
    covariance = torch.zeros_like(first.basis)
    for w, part in zip(weights, parts, strict=True):
        difference = (part.mean - mean).reshape(-1)
        component = part.basis @ torch.diag(part.variance) @ part.basis.mT
        covariance = covariance + w * (component + torch.outer(difference, difference))
    return Moments.from_covariance(mean, covariance)
