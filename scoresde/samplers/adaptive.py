r"""A reverse SDE that chooses its steps, each sample its own.

A step is the exact one in log-SNR with x̂ interpolated between its two ends (κ = 1 + η²,
h = λ_s − λ_t, G ~ N(0, 1 − e^{−2η²h})),

    x'  = (σ_s/σ_t) e^{−η²h} x + α_s m_0 x̂(x, t) + σ_s G,
    x_s = x' + α_s m_1 (x̂(x', s) − x̂(x, t)),        m_k = ∫₀¹ κh e^{−κh(1−u)} uᵏ du,

and the last term is its error estimate. A refused step must not be forgotten: its noise was
looked at, and new noise in its place would prefer the harmless. What was drawn for the long step is
kept, and split for the shorter one as the Brownian path it is a part of (a bridge): for a < m < b,

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
"""The error of a step is O(h^{3/2}), for its noise is O(h^{1/2})."""

_SMALLEST = 1e-4
"""Steps of this part of the way are always made, so that every run ends."""


@dataclass(frozen=True)
class AdaptiveSDE(Sampler):
    r"""The reverse SDE with step sizes controlled per sample.

    Every sample steps on its own, whatever its batch-mates do. Two evaluations a step, one for a
    refused one. The loop looks at the device after each round, to see who has arrived.

    Args:
        tolerance: error of a step, root mean square over the coordinates, relative to the noise σ
            left in the state.
        eta: η > 0; 1 is the reverse SDE.
        first: length in log-SNR λ of the first step tried.
        longest: of any step. Where all is noise, and where none is, x̂ hardly changes, and a longer
            step could leap over all that lies between without noticing.

    Example:
        >>> AdaptiveSDE(tolerance=0.02)
        AdaptiveSDE(tolerance=0.02, eta=1.0, first=0.1, longest=0.5)

    References:
        Jolicoeur-Martineau et al., *Gotta go fast when generating data with score-based models*,
        2021, arXiv:2105.14080 (which draws anew after a refusal); Rackauckas & Nie, *Adaptive
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
        """The grid is a frame for the steps within; one interval."""
        return 1

    def init(self, score: Score, x: Tensor, times: Tensor) -> Tensor:
        """Return the length of each sample's next step ``(batch,)``."""
        return torch.full((x.shape[0],), self.first, dtype=torch.float64, device=x.device)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Go from t to s, both ``()``, in as many steps as each sample needs."""
        sde = check_gaussian(score.sde)
        start, end = (float(sde.half_logsnr(sde.interior(u))) for u in (t, s))
        out, lengths = torch.empty_like(x), torch.empty_like(state)
        walk = _Walk.begin(x, t, start, state)
        while len(walk.rows):
            z = noise(x)[walk.rows]
            walk = self._advance(score, sde, walk, end, (end - start) * _SMALLEST, z)
            arrived = walk.place >= end
            index = arrived.nonzero().squeeze(1)
            if len(index):
                out[walk.rows[index]] = walk.x[index]
                lengths[walk.rows[index]] = walk.length[index]
                walk = walk.take((~arrived).nonzero().squeeze(1))
        return out, lengths

    def _advance(
        self, score: Score, sde: GaussianSDE, walk: _Walk, end: float, smallest: float, z: Tensor
    ) -> _Walk:
        """Try one step for every sample."""
        score = score.select(walk.rows)
        walk = walk.look(score)
        length = walk.length.clamp(max=self.longest)
        target = torch.minimum(walk.place + length, walk.knot()).clamp(max=end)
        time, h = sde.time_at(target), target - walk.place
        walk, kick = walk.draw(target, z, self.eta)

        alpha, sigma = sde.alpha(time), sde.sigma(time)
        c = (1 + self.eta**2) * h
        zeroth = -torch.expm1(-c)
        kept = sigma / sde.sigma(walk.time) * torch.exp(-(self.eta**2) * h)
        x = expand(kept, walk.x) * walk.x + expand(sigma, walk.x) * kick
        x = x + expand(alpha * zeroth, x) * walk.denoised
        change = score.denoised(x, time) - walk.denoised
        change = expand(alpha * (1 - zeroth / c), x) * change

        error = flatten(change).double().square().mean(1).sqrt() / (self.tolerance * sigma)
        factor = (_SAFETY * error**-_EXPONENT).nan_to_num(nan=_GROW).clamp(_SHRINK, _GROW)
        accepted = ~((error > 1) & (h > smallest))
        return walk.settle(accepted, x + change, target, time, h * factor)


@dataclass
class _Walk:
    """Samples under way, one row each, with the noise of refused steps on a stack."""

    rows: Tensor  # (m,) index in the batch
    x: Tensor  # (m, *event)
    time: Tensor  # (m,) t
    place: Tensor  # (m,) λ
    length: Tensor  # (m,) of the next step
    denoised: Tensor  # (m, *event) x̂ at x
    stale: Tensor  # (m,) whether x has moved since
    depth: Tensor  # (m,) entries on the stack
    knots: Tensor  # (m, K) λ where they end, the nearest last
    kicks: Tensor  # (m, K, *event) G of each

    @classmethod
    def begin(cls, x: Tensor, time: Tensor, place: float, length: Tensor) -> _Walk:
        m = x.shape[0]
        rows = torch.arange(m, device=x.device)
        return cls(
            rows=rows,
            x=x,
            time=time.to(x.device).expand(m),
            place=torch.full_like(length, place),
            length=length,
            denoised=torch.zeros_like(x),
            stale=torch.ones_like(rows, dtype=torch.bool),
            depth=torch.zeros_like(rows),
            knots=length.new_full((m, 1), math.inf),
            kicks=x.new_zeros((m, 1, *x.shape[1:])),
        )

    def take(self, index: Tensor) -> _Walk:
        return _Walk(*(getattr(self, f.name)[index] for f in fields(self)))

    def look(self, score: Score) -> _Walk:
        """Evaluate x̂ where the state has moved."""
        index = self.stale.nonzero().squeeze(1)
        if not len(index):
            return self
        denoised = self.denoised.clone()
        denoised[index] = score.select(index).denoised(self.x[index], self.time[index])
        return replace(self, denoised=denoised, stale=torch.zeros_like(self.stale))

    def knot(self) -> Tensor:
        """Where the nearest stored piece of the path ends; ∞ for none."""
        return self.knots.gather(1, self.depth.unsqueeze(1)).squeeze(1)

    def draw(self, target: Tensor, z: Tensor, eta: float) -> tuple[_Walk, Tensor]:
        """Return G from here to ``target``, and leave it on top of the stack."""
        index = torch.arange(len(self.rows), device=z.device)
        knot, whole = self.knot(), self.kicks[index, self.depth]
        first, rest = _variance(target - self.place, eta), _variance(knot - target, eta)
        total = _variance(knot - self.place, eta)
        fade = torch.exp(-(eta**2) * (knot - target))
        kick = expand(fade * first / total, z) * whole
        kick = kick + expand((first * rest / total).sqrt(), z) * z
        knots, kicks, depth = self.knots.clone(), self.kicks.clone(), self.depth
        kicks[index, depth] = whole - expand(fade, z) * kick
        depth = depth + (target < knot)
        if int(depth.max()) == knots.shape[1]:
            knots = torch.cat([knots, knots[:, :1]], dim=1)
            kicks = torch.cat([kicks, torch.zeros_like(kicks[:, :1])], dim=1)
        knots[index, depth], kicks[index, depth] = target, kick
        return replace(self, knots=knots, kicks=kicks, depth=depth), kick

    def settle(
        self, accepted: Tensor, x: Tensor, place: Tensor, time: Tensor, length: Tensor
    ) -> _Walk:
        """Move the accepted; the others try again from where they are, their noise kept."""
        moved = accepted.reshape(-1, *(1,) * (x.ndim - 1))
        return replace(
            self,
            x=torch.where(moved, x, self.x),
            time=torch.where(accepted, time, self.time),
            place=torch.where(accepted, place, self.place),
            length=length,
            stale=accepted,
            depth=self.depth - accepted.long(),
        )


def _variance(length: Tensor, eta: float) -> Tensor:
    return -torch.expm1(-2 * eta**2 * length)
