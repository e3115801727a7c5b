r"""The reverse SDE with adaptive step sizes, one per sample.

A step is the exact one in log-SNR with x̂ interpolated linearly between its two ends (κ = 1 + η²,
h = λ_s − λ_t, G ~ N(0, 1 − e^{−2η²h})),

    x'  = (σ_s/σ_t) e^{−η²h} x + α_s m_0 x̂(x, t) + σ_s G,
    x_s = x' + α_s m_1 (x̂(x', s) − x̂(x, t)),        m_k = ∫₀¹ κh e^{−κh(1−u)} uᵏ du,

and the last term is its error estimate. The noise of a rejected step must not be drawn again: the
rejection depends on it, so that new noise would bias the result. The noise of the long step is
stored, and the shorter steps draw theirs conditionally on it (a Brownian bridge): for a < m < b,

    G_ab = d G_am + G_mb,      G_am | G_ab ~ N(d v_am/v_ab G_ab, v_am v_mb/v_ab),
    d = e^{−η²(b−m)},          v_xy = 1 − e^{−2η²(y−x)}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from scoresde._core.checks import check_positive
from scoresde._core.shapes import expand, flatten
from scoresde.samplers.base import Noise, Sampler, check_gaussian
from scoresde.scores import Score
from scoresde.sdes import GaussianSDE

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 2.0
_EXPONENT = 1 / 1.5
"""The error of a step is O(h^{3/2}), since its noise is O(h^{1/2})."""

_MIN_STEP = 1e-4
"""Steps of this fraction of the interval are always accepted, so that every run terminates."""


@dataclass(frozen=True)
class AdaptiveSDE(Sampler):
    r"""The reverse SDE with step sizes controlled per sample.

    The steps of a sample do not depend on the other samples of the batch. An accepted step costs
    two evaluations of the score, a rejected one costs one. The loop synchronizes with the device
    after each trial step, to find the samples that are finished.

    Args:
        tolerance: tolerated error of a step, root mean square over the coordinates, relative to the
            noise σ left in the state.
        eta: η > 0; 1 is the reverse SDE.
        first: length in the half log-SNR λ of the first trial step.
        longest: maximal length of a step. x̂ hardly changes at very high and at very low noise, and
            a longer step could pass over all noise levels between them with a small error estimate.

    Raises:
        ValueError: unless all numbers are positive.

    Example:
        >>> AdaptiveSDE(tolerance=0.02)
        AdaptiveSDE(tolerance=0.02, eta=1.0, first=0.1, longest=0.5)

    References:
        Jolicoeur-Martineau et al., *Gotta go fast when generating data with score-based models*,
        2021, arXiv:2105.14080 (with new noise after a rejection); Rackauckas & Nie, *Adaptive
        methods for stochastic differential equations via natural embeddings and rejection sampling
        with memory*, 2017, arXiv:1602.06356.
    """

    tolerance: float = 0.1
    eta: float = 1.0
    first: float = 0.1
    longest: float = 0.5

    def __post_init__(self) -> None:
        check_positive("tolerance", self.tolerance)
        check_positive("eta", self.eta, hint="for the flow use ProbabilityFlow()")
        check_positive("first", self.first)
        check_positive("longest", self.longest)

    @property
    def default_steps(self) -> int:
        """One, within which each sample chooses its own steps."""
        return 1

    def init(self, score: Score, x: Tensor, times: Tensor) -> Tensor:
        """Return the length of the next trial step of each sample ``(batch,)``."""
        return torch.full((x.shape[0],), self.first, dtype=torch.float64, device=x.device)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """As many steps as each sample needs (see :meth:`Sampler.step`)."""
        sde = check_gaussian(score.sde)
        start, end = (float(sde.half_logsnr(sde.interior(u))) for u in (t, s))
        out, lengths = torch.empty_like(x), torch.empty_like(state)
        paths = _BridgedPaths.begin(x, t, start, state)
        while len(paths.rows):
            z = noise(x)[paths.rows]
            paths = self._trial_step(score, sde, paths, end, (end - start) * _MIN_STEP, z)
            finished = paths.half_logsnr >= end
            index = finished.nonzero().squeeze(1)
            if len(index):
                out[paths.rows[index]] = paths.x[index]
                lengths[paths.rows[index]] = paths.length[index]
                paths = paths.select((~finished).nonzero().squeeze(1))
        return out, lengths

    def _trial_step(
        self,
        score: Score,
        sde: GaussianSDE,
        paths: _BridgedPaths,
        end: float,
        smallest: float,
        z: Tensor,
    ) -> _BridgedPaths:
        """Try one step of every sample."""
        score = score.select(paths.rows)
        paths = paths.evaluate(score)
        length = paths.length.clamp(max=self.longest)
        target = torch.minimum(paths.half_logsnr + length, paths.next_node()).clamp(max=end)
        time, h = sde.time_at(target), target - paths.half_logsnr
        paths, increment = paths.draw(target, z, self.eta)

        alpha, sigma = sde.alpha(time), sde.sigma(time)
        c = (1 + self.eta**2) * h
        zeroth = -torch.expm1(-c)
        factor = sigma / sde.sigma(paths.time) * torch.exp(-(self.eta**2) * h)
        x = expand(factor, paths.x) * paths.x + expand(sigma, paths.x) * increment
        x = x + expand(alpha * zeroth, x) * paths.denoised
        change = score.denoised(x, time) - paths.denoised
        change = expand(alpha * (1 - zeroth / c), x) * change

        error = flatten(change).double().square().mean(1).sqrt() / (self.tolerance * sigma)
        growth = (_SAFETY * error**-_EXPONENT).nan_to_num(nan=_GROW).clamp(_SHRINK, _GROW)
        accepted = ~((error > 1) & (h > smallest))
        return paths.accept(accepted, x + change, target, time, h * growth)


@dataclass
class _BridgedPaths:
    """Unfinished samples, one per row, with the noise of rejected steps on a stack."""

    rows: Tensor
    """Index in the batch ``(m,)``."""
    x: Tensor
    """State ``(m, *event)``."""
    time: Tensor
    """t ``(m,)``."""
    half_logsnr: Tensor
    """λ ``(m,)``."""
    length: Tensor
    """Length of the next trial step ``(m,)``."""
    denoised: Tensor
    """x̂ at x ``(m, *event)``."""
    stale: Tensor
    """Whether x has changed since x̂ was evaluated ``(m,)``."""
    depth: Tensor
    """Index of the top of the stack ``(m,)``."""
    nodes: Tensor
    """λ at the ends of the stored increments ``(m, K)``, decreasing; ∞ at the bottom."""
    increments: Tensor
    """The stored G of the intervals that end there ``(m, K, *event)``."""

    @classmethod
    def begin(cls, x: Tensor, time: Tensor, half_logsnr: float, length: Tensor) -> _BridgedPaths:
        m = x.shape[0]
        rows = torch.arange(m, device=x.device)
        return cls(
            rows=rows,
            x=x,
            time=time.to(x.device).expand(m),
            half_logsnr=torch.full_like(length, half_logsnr),
            length=length,
            denoised=torch.zeros_like(x),
            stale=torch.ones_like(rows, dtype=torch.bool),
            depth=torch.zeros_like(rows),
            nodes=length.new_full((m, 1), math.inf),
            increments=x.new_zeros((m, 1, *x.shape[1:])),
        )

    def select(self, index: Tensor) -> _BridgedPaths:
        return _BridgedPaths(*(getattr(self, f.name)[index] for f in fields(self)))

    def evaluate(self, score: Score) -> _BridgedPaths:
        """Evaluate x̂ where the state has changed."""
        index = self.stale.nonzero().squeeze(1)
        if not len(index):
            return self
        denoised = self.denoised.clone()
        denoised[index] = score.select(index).denoised(self.x[index], self.time[index])
        return replace(self, denoised=denoised, stale=torch.zeros_like(self.stale))

    def next_node(self) -> Tensor:
        """Return the λ at the end of the increment on top of the stack; ∞ for none."""
        return self.nodes.gather(1, self.depth.unsqueeze(1)).squeeze(1)

    def draw(self, target: Tensor, z: Tensor, eta: float) -> tuple[_BridgedPaths, Tensor]:
        """Return G from λ to ``target``, and push it to the stack."""
        index = torch.arange(len(self.rows), device=z.device)
        node, total = self.next_node(), self.increments[index, self.depth]
        first = _variance(target - self.half_logsnr, eta)
        second = _variance(node - target, eta)
        both = _variance(node - self.half_logsnr, eta)
        decay = torch.exp(-(eta**2) * (node - target))
        increment = expand(decay * first / both, z) * total
        increment = increment + expand((first * second / both).sqrt(), z) * z
        nodes, increments, depth = self.nodes.clone(), self.increments.clone(), self.depth
        increments[index, depth] = total - expand(decay, z) * increment
        depth = depth + (target < node)
        if int(depth.max()) == nodes.shape[1]:
            nodes = torch.cat([nodes, nodes[:, :1]], dim=1)
            increments = torch.cat([increments, torch.zeros_like(increments[:, :1])], dim=1)
        nodes[index, depth], increments[index, depth] = target, increment
        return replace(self, nodes=nodes, increments=increments, depth=depth), increment

    def accept(
        self, accepted: Tensor, x: Tensor, half_logsnr: Tensor, time: Tensor, length: Tensor
    ) -> _BridgedPaths:
        """Make the accepted steps; rejected ones leave the state, and their noise on the stack."""
        mask = accepted.reshape(-1, *(1,) * (x.ndim - 1))
        return replace(
            self,
            x=torch.where(mask, x, self.x),
            time=torch.where(accepted, time, self.time),
            half_logsnr=torch.where(accepted, half_logsnr, self.half_logsnr),
            length=length,
            stale=accepted,
            depth=self.depth - accepted.long(),
        )


def _variance(length: Tensor, eta: float) -> Tensor:
    return -torch.expm1(-2 * eta**2 * length)
