"""The libraries whose densities of the probability flow are compared: ours and five others.

The others integrate x and log p in the time t of the diffusion, the entire batch at once, as in
their documentation, with one tolerance for rtol and atol. Their right-hand side is one evaluation
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


class EvaluationLimitError(Exception):
    """The limit of evaluations is exceeded."""


class RightHandSide:
    """dx/dt and its divergence for flattened states, counted.

    Args:
        score: the score.
        x: states ``(batch, *event)``.
        trace: the divergence estimator; its probes are the same at every evaluation.
        seed: seed of the probes.
        limit: largest number of evaluations.
    """

    def __init__(
        self, score: Score, x: Tensor, trace: Trace, seed: int = 0, limit: int = 20_000
    ) -> None:
        self.flow = GeneralProbabilityFlow(score, x.shape[1:])
        self.trace, self.limit, self.count = trace, limit, 0
        self.rng = CounterRNG.draw(len(x), torch.Generator().manual_seed(seed))

    def __call__(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/dt ``(batch, d)`` and its divergence ``(batch,)``."""
        if self.count == self.limit:
            raise EvaluationLimitError
        self.count += 1
        time = torch.as_tensor(t, dtype=torch.float64).clamp(self.flow.start, self.flow.end)
        point = self.flow.evaluate(time.expand(len(x)), x, slice(None), self.trace, self.rng)
        return point.velocity.to(x), point.integrand.mean(1).to(x)


@dataclass(frozen=True)
class Outcome:
    """Result of one solve.

    Attributes:
        log_prob: in nats ``(batch,)``; NaN where there is no value.
        evaluations: evaluations of score and divergence, the mean over samples.
        likelihood: of ours, with its error budget.
    """

    log_prob: Tensor
    evaluations: float
    likelihood: Likelihood | None = None


class Library(ABC):
    """A library with one of its methods."""

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
        limit: int = 20_000,
    ) -> Outcome:
        """Compute log p with a tolerance; the exact divergence if ``trace`` is None."""

    def weight(self, product: float) -> float:
        """Return the cost of an evaluation in forward passes, for the cost of a product vᵀJ."""
        return self.forwards + product


class Ours(Library):
    """`log_likelihood` with default settings except the tolerance."""

    name = "scoresde"
    tolerances = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)

    def solve(
        self,
        problem: Problem,
        tolerance: float,
        trace: Trace | None = None,
        seed: int = 0,
        limit: int = 20_000,
    ) -> Outcome:
        result = log_likelihood(
            problem.score,
            problem.x,
            tolerance=tolerance,
            prior=problem.prior,
            trace=problem.trace if trace is None else trace,
            generator=torch.Generator().manual_seed(seed),
        )
        return Outcome(result.log_prob, float(result.evaluations.double().mean()), result)


class OtherLibrary(Library):
    """Another library: the states (x, log p) of a batch from t_min to T."""

    def solve(
        self,
        problem: Problem,
        tolerance: float,
        trace: Trace | None = None,
        seed: int = 0,
        limit: int = 20_000,
    ) -> Outcome:
        score = problem.traced if trace is None else problem.score
        rhs = RightHandSide(score, problem.x, trace or OneProductTrace(), seed, limit)
        x = problem.x.flatten(1)
        try:
            with torch.no_grad():
                latent, integral = self.integrate(rhs, x, tolerance)
            terminal = problem.prior.log_prob(latent.double().reshape(problem.x.shape))
            log_prob = terminal + integral
        except (
            EvaluationLimitError,
            AssertionError,
        ):  # torchdiffeq asserts that its step is not too small
            log_prob = torch.full_like(problem.truth, torch.nan)
        return Outcome(log_prob, rhs.count)

    @abstractmethod
    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Return x at T ``(batch, d)`` and the integral of the divergence ``(batch,)``."""


class TorchDiffEq(OtherLibrary):
    """dopri5 of torchdiffeq."""

    name = "torchdiffeq dopri5"

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
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


class Zuko(OtherLibrary):
    """odeint of zuko."""

    name = "zuko odeint"

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        return zuko_odeint(
            lambda t, x, _: rhs(t, x),
            (x, x.new_zeros(len(x))),
            rhs.flow.start,
            rhs.flow.end,
            atol=tolerance,
            rtol=tolerance,
        )


class TorchODE(OtherLibrary):
    """tsit5 of torchode, with steps of its own for every sample."""

    name = "torchode tsit5"

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve for x with log p appended."""

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


class FlowMatching(OtherLibrary):
    """ODESolver.compute_likelihood of flow_matching with dopri5; in float32, as it requires."""

    name = "flow_matching dopri5"
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Integrate the flow as one from noise at time 0 to data at time 1."""
        start, end = rhs.flow.start, rhs.flow.end

        class Velocity(ModelWrapper):
            def forward(self, x: Tensor, t: Tensor, **extras: object) -> Tensor:
                if rhs.count == rhs.limit:
                    raise EvaluationLimitError
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


class ScoreSDE(OtherLibrary):
    """The recipe of score_sde: SciPy's RK45, one norm for the batch, two forward passes each."""

    name = "score_sde recipe"
    forwards = 2

    def integrate(self, rhs: RightHandSide, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Solve for all states and integrals as one vector."""

        def field(t: Tensor, x: Tensor, *_: object) -> tuple[Tensor, Tensor, None]:
            velocity, divergence = rhs(t[0], x)
            return velocity, divergence.unsqueeze(1), None

        solver = SciPy("RK45", rtol=tolerance, atol=tolerance, coupled=True, max_evaluations=10**6)
        solution = solver.solve(field, x, rhs.flow.start, rhs.flow.end, tolerance=tolerance)
        integral = torch.where(solution.status == 0, solution.integral, torch.nan)
        return solution.state, integral


OURS = Ours()
OTHERS: tuple[OtherLibrary, ...] = (TorchDiffEq(), Zuko(), TorchODE(), FlowMatching(), ScoreSDE())
LIBRARIES: tuple[Library, ...] = (OURS, *OTHERS)
