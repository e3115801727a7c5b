"""The ways through the probability flow that are compared: ours, and five of other libraries.

The others integrate x and log p in the time t of the diffusion, the whole batch at once, as their
documentation has it, with one tolerance for rtol and atol. Their right-hand side is one evaluation
of the score and one product vᵀJ; that of score_sde evaluates the score twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torchode
from density.problems import OneProductTrace, Problem
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import Tensor
from torchdiffeq import odeint
from zuko.utils import odeint as zuko_odeint

from scoresde import Likelihood, Score, log_likelihood
from scoresde._core.counter_rng import CounterRNG
from scoresde.flow.probability_flow import GeneralProbabilityFlow
from scoresde.solvers import SciPy
from scoresde.traces import Trace


class Capped(Exception):  # noqa: N818
    """The evaluations are spent."""


class RightHandSide:
    """dx/dt and its divergence for flattened states, counted.

    Args:
        score: the score.
        x: states ``(batch, *event)``.
        trace: the estimator of the divergence; its probes are the same at every evaluation.
        seed: of the probes.
        cap: how many evaluations there can be.
    """

    def __init__(
        self, score: Score, x: Tensor, trace: Trace, seed: int = 0, cap: int = 20_000
    ) -> None:
        self.flow = GeneralProbabilityFlow(score, x.shape[1:])
        self.trace, self.left, self.count = trace, cap, 0
        self.rng = CounterRNG.draw(len(x), torch.Generator().manual_seed(seed))

    def __call__(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/dt ``(batch, d)`` and its divergence ``(batch,)``."""
        if self.count == self.left:
            raise Capped
        self.count += 1
        time = torch.as_tensor(t, dtype=torch.float64).clamp(self.flow.start, self.flow.end)
        found = self.flow.evaluate(time.expand(len(x)), x, slice(None), self.trace, self.rng)
        return found.velocity.to(x), found.integrand.mean(1).to(x)


@dataclass(frozen=True)
class Outcome:
    """What one solve gave and took.

    Attributes:
        log_prob: in nats ``(batch,)``; NaN where there is no value.
        evaluations: evaluations of score and divergence, the mean over samples.
        likelihood: ours with its budget.
    """

    log_prob: Tensor
    evaluations: float
    likelihood: Likelihood | None = None


class Way(ABC):
    """A library with its method."""

    name: str
    forwards: int = 1
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

    @abstractmethod
    def solve(
        self,
        problem: Problem,
        tolerance: float,
        trace: Trace | None = None,
        seed: int = 0,
        cap: int = 20_000,
    ) -> Outcome:
        """Compute log p with a tolerance; the exact divergence if ``trace`` is None."""

    def weight(self, product: float) -> float:
        """Return the price of an evaluation in forward passes, a product costing ``product``."""
        return self.forwards + product


class Ours(Way):
    """`log_likelihood`, as it comes but for its tolerance."""

    name = "scoresde"
    tolerances = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)

    def solve(
        self,
        problem: Problem,
        tolerance: float,
        trace: Trace | None = None,
        seed: int = 0,
        cap: int = 20_000,
    ) -> Outcome:
        """Compute log p (see :meth:`Way.solve`)."""
        result = log_likelihood(
            problem.score,
            problem.x,
            tolerance=tolerance,
            prior=problem.prior,
            trace=problem.trace if trace is None else trace,
            generator=torch.Generator().manual_seed(seed),
        )
        return Outcome(result.log_prob, float(result.evaluations.double().mean()), result)


class Peer(Way):
    """Another library: the states (x, log p) of a batch from t_min to T."""

    def solve(
        self,
        problem: Problem,
        tolerance: float,
        trace: Trace | None = None,
        seed: int = 0,
        cap: int = 20_000,
    ) -> Outcome:
        """Compute log p (see :meth:`Way.solve`)."""
        score = problem.traced if trace is None else problem.score
        rhs = RightHandSide(score, problem.x, trace or OneProductTrace(), seed, cap)
        x = problem.x.flatten(1)
        try:
            with torch.no_grad():
                latent, integral = self.integrate(rhs, x, tolerance)
            terminal = problem.prior.log_prob(latent.double().reshape(problem.x.shape))
            log_prob = terminal + integral
        except (Capped, AssertionError):  # torchdiffeq asserts that its step is not too small
            log_prob = torch.full_like(problem.truth, torch.nan)
        return Outcome(log_prob, rhs.count)

    @abstractmethod
    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Return x at T ``(batch, d)`` and the integral of the divergence ``(batch,)``."""


class TorchDiffEq(Peer):
    """dopri5 of torchdiffeq."""

    name = "torchdiffeq dopri5"

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve for the pair (x, log p)."""
        times = x.new_tensor([rhs.flow.start, rhs.flow.end])
        states = odeint(
            lambda t, y: rhs(t, y[0]),
            (x, x.new_zeros(len(x))),
            times,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
        )
        return states[0][-1], states[1][-1]


class Zuko(Peer):
    """odeint of zuko."""

    name = "zuko odeint"

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve for the pair (x, log p)."""
        return zuko_odeint(
            lambda t, x, _: rhs(t, x),
            (x, x.new_zeros(len(x))),
            rhs.flow.start,
            rhs.flow.end,
            atol=tolerance,
            rtol=tolerance,
        )


class TorchODE(Peer):
    """tsit5 of torchode, with steps of its own for every sample."""

    name = "torchode tsit5"

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve for x with log p behind it."""

        def slope(t: Tensor, y: Tensor) -> Tensor:
            velocity, divergence = rhs(t, y[:, :-1])
            return torch.cat([velocity, divergence.unsqueeze(1)], dim=1)

        term = torchode.ODETerm(slope)
        control = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        adjoint = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), control)
        start, end = (x.new_full((len(x),), t) for t in (rhs.flow.start, rhs.flow.end))
        problem = torchode.InitialValueProblem(torch.nn.functional.pad(x, (0, 1)), start, end)
        y = adjoint.solve(problem).ys[:, -1]
        return y[:, :-1], y[:, -1]


class FlowMatching(Peer):
    """ODESolver.compute_likelihood of flow_matching with dopri5; in float32, as it needs."""

    name = "flow_matching dopri5"
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Tell the flow as one from noise at time 0 to data at time 1."""
        start, end = rhs.flow.start, rhs.flow.end

        class Velocity(ModelWrapper):
            def forward(self, x: Tensor, t: Tensor, **extras: object) -> Tensor:
                if rhs.count == rhs.left:
                    raise Capped
                rhs.count += 1
                time = (start + (1 - t.double()) * (end - start)).clamp(start, end)
                image = x.reshape(-1, *rhs.flow.event_shape)
                sde, score = rhs.flow.score.sde, rhs.flow.score
                half = 0.5 * sde.diffusion(time).square()
                velocity = sde.drift(image, time) - half.to(x) * score(image, time)
                return -(end - start) * velocity.flatten(1)

        with torch.random.fork_rng(devices=[]):  # its probe comes from the global generator
            torch.manual_seed(0)
            return ODESolver(Velocity(torch.nn.Identity())).compute_likelihood(
                x.float(),
                lambda latent: torch.zeros(len(latent)),
                step_size=None,
                method="dopri5",
                atol=tolerance,
                rtol=tolerance,
            )


class ScoreSDE(Peer):
    """The recipe of score_sde: SciPy's RK45 with one norm for the batch, two forwards each time."""

    name = "score_sde recipe"
    forwards = 2

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve for all states and integrals as one vector."""

        def field(t: Tensor, x: Tensor, *_: object) -> tuple[Tensor, Tensor, None]:
            velocity, divergence = rhs(t[0], x)
            return velocity, divergence.unsqueeze(1), None

        solver = SciPy("RK45", rtol=tolerance, atol=tolerance, coupled=True, max_evaluations=10**6)
        found = solver.solve(field, x, rhs.flow.start, rhs.flow.end, tolerance=tolerance)
        integral = torch.where(found.status == 0, found.integral, torch.nan)
        return found.state, integral


OURS = Ours()
PEERS: tuple[Peer, ...] = (TorchDiffEq(), Zuko(), TorchODE(), FlowMatching(), ScoreSDE())
WAYS: tuple[Way, ...] = (OURS, *PEERS)
