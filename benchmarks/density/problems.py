"""Scores with known log-density, points on and off the data, and trained networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import SDE, VESDE, VPSDE, FunctionScore, GaussianMixture, Score, ScoreModel, SubVPSDE
from scoresde._core.counter_rng import CounterRNG
from scoresde.commands import demo
from scoresde.commands.data import digits, evaluation_set
from scoresde.flow.probability_flow import GeneralProbabilityFlow
from scoresde.likelihood import FlowIntegral, LikelihoodSettings
from scoresde.networks import MLP
from scoresde.solvers import SciPy
from scoresde.traces import ExactTrace, Hutchinson, Trace
from scoresde.training import fit

CACHE = Path(__file__).parent / ".cache"
SDES: tuple[SDE, ...] = (VPSDE(), SubVPSDE(), VESDE())
KINDS = ("smooth", "hard", "aniso")
POINTS = {2: 16, 16: 16, 64: 16, 784: 4}
"""Number of points of a mixture, by dimension."""


class OneProductTrace(Hutchinson):
    """One random probe, for a score whose products vᵀJ are v tr J/d, so that it has no noise."""

    exact = True


def traced(score: Score, divergence: Callable[[Tensor, Tensor], Tensor]) -> FunctionScore:
    """Return the same score with vᵀJ := v ∇·s/d: the estimators of all libraries become exact."""

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, t: Tensor) -> Tensor:
            ctx.save_for_backward(x, t)
            return score(x, t)

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
            x, t = ctx.saved_tensors
            mean = divergence(x, t) / math.prod(x.shape[1:])
            return v * mean.to(v.dtype).reshape(-1, *(1,) * (v.ndim - 1)), None

    return FunctionScore(Traced.apply, score.sde, moments=score.moments)


def jacobian_trace(score: Score) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the divergence of a score, one product per dimension."""

    def divergence(x: Tensor, t: Tensor) -> Tensor:
        def field(z: Tensor) -> Tensor:
            return score(z.reshape(x.shape), t).flatten(1)

        _, trace = ExactTrace()(field, x.detach().flatten(1), CounterRNG.draw(len(x), None))
        return trace.squeeze(1)

    return divergence


@dataclass(frozen=True)
class Terminal:
    """The exact distribution at T of a mixture, as a prior."""

    score: GaussianMixture

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p_T."""
        return self.score.log_prob(x, self.score.sde.T)


@dataclass(frozen=True)
class Problem:
    """A score, points, and their exact log-densities.

    Attributes:
        name: the name in tables.
        score: the score for our library.
        traced: the same for libraries with a stochastic trace, exact with one probe.
        trace: the trace for our library; None for its default.
        prior: the distribution at T of ``truth``.
        x: the points, ``(batch, *event)``, float32 numbers in float64.
        truth: log p_{t_min} there, in nats ``(batch,)``.
    """

    name: str
    score: Score
    traced: Score
    trace: Trace | None
    prior: Any
    x: Tensor
    truth: Tensor

    @property
    def dimension(self) -> int:
        """Return d."""
        return math.prod(self.x.shape[1:])

    def bits_off(self, log_prob: Tensor) -> Tensor:
        """Return the errors in bits per dimension; infinite where there is no value."""
        error = (log_prob.double() - self.truth).abs() / (self.dimension * math.log(2))
        return error.nan_to_num(torch.inf)

    def part(self, rows: slice) -> Problem:
        """Return the problem at some of the points."""
        return replace(self, x=self.x[rows], truth=self.truth[rows])

    def at(self, x: Tensor) -> Problem:
        """Return the same mixture at other points."""
        x = x.float().double()
        truth = self.prior.score.log_prob(x, self.score.sde.t_min)
        return Problem(self.name, self.score, self.traced, self.trace, self.prior, x, truth)


def mixture(kind: str, d: int, sde: SDE, points: int) -> Problem:
    """Return a mixture with modes about 2 apart, at points drawn from it.

    smooth: 5 modes of standard deviation 0.5; hard: 8, from 0.01 to 0.05; aniso: 4, from 1 to 0.1
    in max(1, d/8) random directions and 0.03 in the others.
    """
    generator = torch.Generator().manual_seed(d)
    count = {"smooth": 5, "hard": 8, "aniso": 4}[kind]
    means = torch.randn(count, d, generator=generator, dtype=torch.float64) * math.sqrt(2 / d)
    if kind == "smooth":
        stds = torch.full((count, d), 0.5, dtype=torch.float64)
    elif kind == "hard":
        stds = torch.logspace(-2, math.log10(0.05), count, dtype=torch.float64)
        stds = stds.unsqueeze(1).expand(count, d)
    else:
        wide = max(1, d // 8)
        stds = torch.full((count, d), 0.03, dtype=torch.float64)
        stds[:, :wide] = torch.logspace(0, -1, wide, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(count, d, d, generator=generator, dtype=torch.float64))[
        0
    ]
    covariances = rotation @ torch.diag_embed(stds**2) @ rotation.mT
    score = GaussianMixture(torch.ones(count), means, (covariances + covariances.mT) / 2, sde)
    x = score.sample(
        points, sde.t_min, torch.Generator().manual_seed(1), dtype=torch.float32
    ).double()
    exact = traced(score, score.divergence)
    large = d > 400  # an exact trace in one product, as if the network had one
    return Problem(
        f"{type(sde).__name__} {kind} d={d}",
        exact if large else score,
        exact,
        OneProductTrace() if large else None,
        Terminal(score),
        x,
        score.log_prob(x, sde.t_min),
    )


def model(quick: bool = False) -> ScoreModel:
    """Return a small U-Net trained on 8 × 8 digits, cached."""
    path = CACHE / ("quick.safetensors" if quick else "digits.safetensors")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        effort = demo.Effort(width=4, steps=50) if quick else demo.Effort(width=8, steps=1000)
        demo.train(digits("digits-train").read(), effort, seed=0).score.save(path)
    return ScoreModel.load(path)


def perceptron(d: int, quick: bool = False) -> ScoreModel:
    """Return an MLP trained on the anisotropic mixture, cached."""
    path = CACHE / f"{'quick' if quick else 'mlp'}{d}.safetensors"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        source = mixture("aniso", d, VPSDE(), 1).score
        data = source.sample(20_000, 0.0, torch.Generator().manual_seed(2), dtype=torch.float32)
        torch.manual_seed(0)
        score = ScoreModel(MLP((d,), width=64, depth=2), VPSDE())
        fit(score, data, steps=50 if quick else 2000, progress=False).score.save(path)
    return ScoreModel.load(path)


def trained(d: int, points: int, quick: bool = False) -> Problem:
    """Return the trained MLP at new points of its data."""
    x = mixture("aniso", d, VPSDE(), points).x
    return converged(f"MLP d={d}", perceptron(d, quick), perceptron(d, quick), x, quick)


def network(points: int, quick: bool = False) -> Problem:
    """Return the trained U-Net on held-out digits."""
    x = evaluation_set(digits("digits-test").read()[:points], demo.QUANTIZATION).float().double()
    return converged("digits U-Net d=64", model(quick), model(quick), x, quick)


def converged(name: str, single: Score, copy: Score, x: Tensor, quick: bool) -> Problem:
    """Return a problem whose reference is a converged solve in float64 by another method."""
    double = copy.double()
    prior = double.sde.prior(x.shape[1:], dtype=torch.float64)
    exact = traced(double, jacobian_trace(double))
    rtol = 1e-6 if quick else 1e-9
    settings = LikelihoodSettings(
        GeneralProbabilityFlow(exact, x.shape[1:]),
        OneProductTrace(),
        SciPy("DOP853", rtol=rtol, atol=rtol, coupled=True),
        1e-3,
        prior,
        CounterRNG.draw(len(x), torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        truth = FlowIntegral()(settings, x, torch.arange(len(x))).log_prob
    faster = traced(single, jacobian_trace(single))
    return Problem(name, single, faster, None, prior, x, truth)
