r"""The Itô density estimator: log p along noised paths of the data, with no divergence.

In y = x/α and v = (σ/α)², every Gaussian diffusion is a Brownian motion, dY = dw_v, with densities
that obey ∂_v log p = ½(∇·s + |s|²), s = ∇_y log p. By Itô's formula, along its paths,

    d log p_v(Y_v) = ½(∇·s + |s|²) dv + s·dY + ½ ∇·s dv = ½ |s|² dv + s ⋆ dY,

where ⋆ takes s at the later end of each step: the divergences turn one Itô integral into the other.
So, of a true score, every noised path of x tells log p(x) = log p_T − ∫ (½ |s|² dv + s ⋆ dY).

Steps v_0 < … < v_N are told by a reverse chain with the kernels of the reverse SDE,

    p(Y_k | Y_{k+1}) = N(Y_{k+1} + Δ s_{k+1}, Δ R_k),    q(Y_{k+1} | Y_k) = N(Y_k, Δ),

with Δ = v_{k+1} − v_k and

    log w = log p_T(Y_T) + Σ_k log p(Y_k | Y_{k+1}) − log q(Y_{k+1} | Y_k).

With R = 1 the sum is Euler's for the integral above. Along the axes of known moments with variances
c, R = (c + v_k)/(c + v_{k+1}) makes the kernel of Gaussian data exact, so that for them every path
tells log p without error for any N. Whatever the score, E w is the density of the chain at x, so
that log (1/K) Σ w over K paths is, in the mean, a lower bound of its log, tighter for larger K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde._core.shapes import flatten
from scoresde.flow.checkpointing import checkpointed
from scoresde.flow.coordinates import Standardized
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.scores import Score


@dataclass(frozen=True)
class ItoEstimate(Method):
    r"""log p from the score along noised paths of x; no divergences, no ODE.

    It tells the density of the reverse SDE of this score, started from the law at T, which for a
    true score is also that of the flow. Two errors, both of which lower the value in the mean:

    * of K paths, log (1/K) Σ w lies below log E w by Var(w)/(2K (E w)²) as K grows. With
      ``standard_error`` s this is ½s²; where s is not small, the bound is not tight and s itself,
      from the spread of the K weights, too small.
    * of N steps, of order 1/N. ``solver_error`` estimates it by the same paths in N/2 steps, at no
      evaluation more; far off the data fewer than a hundred steps are too few to tell it.

    ``converged`` says that the value is finite. ``latent`` is the mean of x_T given x. The
    tolerance, the solver and the trace of the query play no part.

    Args:
        steps: N, a multiple of 2; uniform in the angle atan(σ/(α b)), b the scale of the data.
        paths: K, at least 2; the evaluations are N K.

    Raises:
        TypeError: when used with a diffusion that is not Gaussian.
        ValueError: if ``steps`` is not a positive multiple of 2, or ``paths`` below 2.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE, log_likelihood
        >>> means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1)
        >>> mixture = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
        >>> x, generator = torch.ones(1, 1), torch.Generator().manual_seed(0)
        >>> result = log_likelihood(mixture, x, method=ItoEstimate(), generator=generator)
        >>> bool((result.log_prob - mixture.log_prob(x)).abs() < 2 * result.error)
        True

    References:
        Huang, Lim & Courville 2021, arXiv:2106.02808, for the bound along paths; Skreta et al.,
        *The superposition of diffusion models using the Itô density estimator*, 2025,
        arXiv:2412.17762, theorem 1; Burda et al. 2016, arXiv:1509.00519, for several paths.
    """

    steps: int = 128
    paths: int = 8

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, minimum=2)
        check_integer("paths", self.paths, minimum=2)
        if self.steps % 2:
            raise ValueError(
                f"steps: expected a multiple of 2, got {self.steps}; the error is told by the same "
                "paths in half as many steps"
            )

    def __call__(self, query: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        """Return the estimate for some rows."""
        flow = query.flow
        if not flow.score.sde.gaussian:
            raise TypeError(
                "method: expected FlowIntegral() or PathIntegral() for a general SDE, got "
                f"{self!r}; the kernel between two times is not known of "
                f"{type(flow.score.sde).__name__}"
            )
        last, fine, coarse = self._walk(query, x.double(), rows)
        sde = flow.score.sde
        terminal, mismatch = flow.terminal(flow.encode(last, flow.end), last, query.prior)
        shrink, _ = sde.transition(flow.t_min, sde.T)
        ends = terminal - flow.log_volume(flow.end) + flow.dimension * math.log(float(shrink))
        log_weights = (ends + fine).unflatten(0, (len(x), self.paths))
        log_prob = torch.logsumexp(log_weights, 1) - math.log(self.paths)
        told = (coarse - fine).detach().unflatten(0, (len(x), self.paths)).mean(1).abs()
        weights = torch.softmax(log_weights.detach(), 1)  # w over K times their mean
        std = self.paths / (self.paths - 1) * ((weights - 1 / self.paths) ** 2).sum(1)
        return Likelihood(
            log_prob=log_prob.to(x.dtype),
            standard_error=std.sqrt().to(x.dtype),
            solver_error=told.nan_to_num(math.inf).to(x.dtype),
            prior_mismatch=mismatch.unflatten(0, (len(x), self.paths)).mean(1).to(x.dtype),
            latent=shrink * x,
            evaluations=torch.full_like(rows, self.steps * self.paths),
            divergences=torch.zeros_like(rows),
            converged=log_prob.isfinite(),
            t_min=flow.t_min,
            points=x,
        )

    def _walk(
        self, query: LikelihoodSettings, x: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise x along K paths each; return where they end ``(m K, *event)``, and Σ log p/q.

        The sum comes twice ``(m K,)``: of all steps, and of the steps from every second node.
        """
        row = rows.repeat_interleave(self.paths)
        path = torch.arange(self.paths, device=x.device).repeat(len(x))
        score = query.flow.score.select(row)
        x = x.repeat_interleave(self.paths, dim=0)
        fine = coarse = x.new_zeros(len(x))
        times = self._times(query).to(x.device)
        for k in range(0, self.steps, 2):
            joint = torch.zeros_like(x)
            for i in (k, k + 1):
                rng = query.rng.at(row, path * self.steps + i)
                noise = rng.normals((query.flow.dimension,)).reshape(x.shape)
                scale, std = score.sde.transition(times[i], times[i + 1])
                x, joint = scale * x + std * noise, scale * joint + std * noise
                pull = _score(score, x, times[i + 1])
                fine = fine + _log_ratio(score, noise, pull, times[i], times[i + 1])
            _, std = score.sde.transition(times[k], times[k + 2])
            coarse = coarse + _log_ratio(score, joint / std, pull, times[k], times[k + 2])
        return x, fine, coarse

    def _times(self, query: LikelihoodSettings) -> Tensor:
        """Return the times of the nodes, ``(steps + 1,)``."""
        score = query.flow.score
        angle = Standardized(score.moments.std)
        ends = torch.tensor([query.flow.t_min, score.sde.T], dtype=torch.float64)
        first, last = angle.time(torch.exp(-score.sde.half_logsnr(score.sde.interior(ends))))
        place = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)[1:-1]
        inner = score.sde.time_at(-torch.log(angle.ratio(first + (last - first) * place)))
        return torch.cat([ends[:1], inner, ends[1:]])


def _score(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """Return the score at one time for all rows, shaped like ``x``."""

    def evaluate(x: Tensor, index: Tensor | slice, differentiable: bool) -> tuple[Tensor]:
        return (score.select(index)(x, t),)

    return checkpointed(evaluate, score, x)[0]


def _log_ratio(score: Score, noise: Tensor, pull: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Return log p(Y_s | Y_t) − log q(Y_t | Y_s) for Y_t = Y_s + √Δ noise, ``(m,)``.

    It is ½ (|ε|² − |ε + κ s(x_t)|²/R − log R), summed over the axes, with κ = α √Δ.
    """
    sde, moments = score.sde, score.moments
    _, std = sde.transition(s, t)
    early, late = (moments.scale(sde.alpha(u), sde.sigma(u)) / sde.alpha(u) for u in (s, t))
    shrink = (early / late) ** 2
    missed = moments.rotate(flatten(noise + std * pull))
    return 0.5 * (flatten(noise) ** 2 - missed**2 / shrink - shrink.log()).sum(1)
