"""Plain functions as members of the families."""

from __future__ import annotations

# a dataclass field may declare what the base class computes
# pyright: reportIncompatibleMethodOverride=false
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde._core.checks import check_integer, check_tensor
from scoresde._core.counter_rng import CounterRNG
from scoresde._core.shapes import Time, as_time, check_batch, check_like, like_time
from scoresde.likelihood import Likelihood, LikelihoodSettings, Method
from scoresde.samplers import Noise, Sampler
from scoresde.scores import Score
from scoresde.sdes import SDE, GaussianSDE
from scoresde.solvers import Solution, Solver, Status, base
from scoresde.solvers.augmented import Augmented, EvaluationLimitError, join
from scoresde.testing.properties import code
from scoresde.traces import Trace
from scoresde.traces.base import VectorField

_MAX_EVALUATIONS = 100_000


def check_function(name: str, value: object, arguments: str) -> None:
    """Raise a ``TypeError`` unless the value can be called."""
    if not callable(value):
        raise TypeError(
            f"{name}: expected a function {arguments}, got {type(value).__name__}; pass the "
            "function itself, not its result"
        )


class Named:
    """A dataclass that prints its functions by their names, and leaves defaults out."""

    def __repr__(self) -> str:
        """Return the constructor's call."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if self._shown(f)}  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{k}={code(v)}' for k, v in values.items())})"

    def _shown(self, declared: Field[Any]) -> bool:
        return declared.default is MISSING or getattr(self, declared.name) != declared.default


# --- SDEs


class FunctionSDE(SDE):
    r"""An SDE dx = f(x, t) dt + g(t) dw from two plain functions.

    Args:
        drift_function: f, from ``x`` ``(batch, *event)`` and a float64 ``t`` that broadcasts
            against it, ``()`` or ``(batch, 1, …)``.
        diffusion_function: g, elementwise in a float64 ``t`` of any shape.
        T: noise end of time.
        t_min: data end of numerical work.
        prior_function: the distribution at T from an event shape, if samples are drawn.

    Raises:
        TypeError: if one of them is not a function.
        ValueError: when called, if a result does not have the shape of its argument.

    Example:
        >>> sde = FunctionSDE(lambda x, t: -x * (1 + t), lambda t: (2 + 2 * t).sqrt())
        >>> sde.drift(torch.ones(2, 3), 0.5)[0]
        tensor([-1.5000, -1.5000, -1.5000])
    """

    def __init__(
        self,
        drift_function: Callable[[Tensor, Tensor], Tensor],
        diffusion_function: Callable[[Tensor], Tensor],
        T: float = 1.0,
        t_min: float = 1e-5,
        prior_function: Callable[[Sequence[int]], Distribution] | None = None,
    ) -> None:
        super().__init__(T, t_min)
        check_function("drift_function", drift_function, "(x, t) -> x-shaped")
        check_function("diffusion_function", diffusion_function, "t -> t-shaped")
        self.drift_function = drift_function
        self.diffusion_function = diffusion_function
        self.prior_function = prior_function

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return f(x, t), shaped like ``x``."""
        time = as_time(t, self.T)
        check_batch(time, x)
        wide = time.to(x.device).reshape(time.shape + (1,) * (x.ndim - 1)) if time.ndim else time
        return check_like("drift_function", self.drift_function(x, wide), x).to(x.dtype)

    def diffusion(self, t: Time) -> Tensor:
        """Return g(t), shaped like ``t``."""
        time = as_time(t, self.T)
        value = torch.as_tensor(self.diffusion_function(time))
        if value.shape not in (time.shape, ()):
            raise ValueError(
                f"diffusion_function: expected shape {tuple(time.shape)} as t has it, got "
                f"{tuple(value.shape)}; it is one number for each time"
            )
        return like_time(value.to(time).expand(time.shape), t)

    def prior(
        self,
        event_shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Distribution:
        """Return the distribution that ``prior_function`` returns."""
        if self.prior_function is None:
            return super().prior(event_shape, dtype=dtype, device=device)
        return self.prior_function(event_shape)


class FunctionGaussianSDE(GaussianSDE):
    r"""A Gaussian SDE x_t = α(t) x_0 + σ(t) ε from two plain functions.

    Args:
        alpha_function: α > 0, elementwise and differentiable in a float64 ``t``; α(0) = 1.
        sigma_function: σ > 0, likewise; σ/α increases.
        T: noise end of time.
        t_min: data end of numerical work.

    Raises:
        TypeError: if one of them is not a function.

    Example:
        >>> sde = FunctionGaussianSDE(
        ...     lambda t: torch.exp(-t), lambda t: (-torch.expm1(-2 * t)).sqrt()
        ... )
        >>> sde.drift(torch.ones(1, 2), 0.5), round(float(sde.diffusion(0.5)), 3)
        (tensor([[-1., -1.]]), 1.414)
    """

    def __init__(
        self,
        alpha_function: Callable[[Tensor], Tensor],
        sigma_function: Callable[[Tensor], Tensor],
        T: float = 1.0,
        t_min: float = 1e-5,
    ) -> None:
        super().__init__(T, t_min)
        check_function("alpha_function", alpha_function, "t -> α(t)")
        check_function("sigma_function", sigma_function, "t -> σ(t)")
        self.alpha_function = alpha_function
        self.sigma_function = sigma_function

    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log α(t)."""
        return torch.log(check_like("alpha_function", self.alpha_function(t), t))

    def log_sigma(self, t: Tensor) -> Tensor:
        """Return log σ(t)."""
        return torch.log(check_like("sigma_function", self.sigma_function(t), t))


# --- samplers


@dataclass(frozen=True, repr=False)
class FunctionSampler(Named, Sampler):
    """A step ``(score, x, t, s, noise) -> x`` as a sampler.

    The step goes from the state x at time t to time s < t; ``noise(x)`` draws independent N(0, 1)
    like x. A step with a history is written as a :class:`~scoresde.samplers.Sampler` or as a
    :class:`LoopSampler`.

    Args:
        function: the step.
        convergence_order: the declared order, if any.
        deterministic: whether it draws no noise.
        corrects: whether it is a corrector, which moves samples towards p_t at constant t.

    Example:
        >>> def euler(score, x, t, s, noise):
        ...     sde = score.sde
        ...     velocity = sde.drift(x, t) - 0.5 * sde.diffusion(t) ** 2 * score(x, t)
        ...     return x + (s - t) * velocity
        >>> FunctionSampler(euler, convergence_order=1, deterministic=True)
        FunctionSampler(function=euler, convergence_order=1, deterministic=True)
    """

    function: Callable[[Score, Tensor, Tensor, Tensor, Noise], Tensor]
    convergence_order: float | None = None
    deterministic: bool = False
    corrects: bool = False

    def __post_init__(self) -> None:
        check_function("function", self.function, "(score, x, t, s, noise) -> x")

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        return check_like("function", self.function(score, x, t, s, noise), x), state


# --- solvers


@dataclass(frozen=True, repr=False)
class FunctionSolver(Named, Solver):
    """An integrator ``(field, z, start, end, tolerance) -> z`` as a solver.

    The function gets ``field(tau, z)`` with a number tau, and a state z ``(m, n)`` whose last
    columns are the integrals that likelihoods need, and returns z at the end. All samples are one
    system.

    Args:
        function: the integrator.
        convergence_order: p, if errors decrease like n⁻ᵖ in n evaluations; None: not declared.
        own_steps: whether the result of a sample is independent of the others of its batch to the
            last digits, as with given steps.
        coupled: whether the samples of a batch share errors and failures, as where a step is chosen
            by a norm over all.
        max_evaluations: largest number of evaluations.

    Example:
        >>> def rk4(field, z, start, end, tolerance):
        ...     steps = round(4 * tolerance**-0.25)
        ...     h, tau = (end - start) / steps, start
        ...     for _ in range(steps):
        ...         a = field(tau, z)
        ...         b = field(tau + h / 2, z + h / 2 * a)
        ...         c = field(tau + h / 2, z + h / 2 * b)
        ...         d = field(tau + h, z + h * c)
        ...         z, tau = z + h / 6 * (a + 2 * b + 2 * c + d), tau + h
        ...     return z
        >>> def decay(tau, z, rows, counter):
        ...     return -z, z.sum(1, keepdim=True), None
        >>> z = torch.ones(1, 2, dtype=torch.float64)
        >>> solution = FunctionSolver(rk4).solve(decay, z, 0.0, 1.0, tolerance=1e-6)
        >>> solution.state, solution.integral  # 1/e, 2 − 2/e
        (tensor([[0.3679, 0.3679]], dtype=torch.float64), tensor([1.2642], dtype=torch.float64))
    """

    function: Callable[[Callable[[float, Tensor], Tensor], Tensor, float, float, float], Tensor]
    convergence_order: float | None = None
    own_steps: bool = False
    coupled: bool = True
    max_evaluations: int = _MAX_EVALUATIONS

    def __post_init__(self) -> None:
        check_function("function", self.function, "(field, z, start, end, tolerance) -> z")
        check_integer("max_evaluations", self.max_evaluations, minimum=1)

    def solve(
        self,
        field: base.Field,
        z: Tensor,
        start: float,
        end: float,
        *,
        tolerance: float,
        noisy: bool = False,
    ) -> Solution:
        """Integrate state and integrals as one system (see :meth:`Solver.solve`)."""
        rows = torch.arange(len(z), device=z.device)
        path = Augmented(field, z, rows, start, end, self.max_evaluations)
        try:
            y = check_like("function", self.function(path, path.y, start, end, tolerance), path.y)
        except EvaluationLimitError:
            return join([path.finish(path.all_rows, Status.MAX_EVALUATIONS, noisy)])
        arrived = y.isfinite().all(1)
        failed = path.finish(~arrived, Status.NOT_FINITE, noisy)
        path.y, path.tau = y[arrived], end
        return join([failed, path.finish(path.all_rows, Status.CONVERGED, noisy)])


# --- traces


@dataclass(frozen=True, repr=False)
class FunctionTrace(Named, Trace):
    """A divergence ``(field, x, noise) -> estimates`` as a trace.

    The function gets h, points x ``(m, d)`` that require gradients, and ``noise(x)``, which draws
    independent N(0, 1) like x, others at each call (for signs: ``noise(x).sign()``). It returns
    independent estimates of tr ∂h/∂x for each row, ``(m, k)`` or ``(m,)``.

    Args:
        function: the estimator.
        probes: number of products vᵀJ that it needs; None for one per dimension.
        exact: whether the estimate has no noise.
        linear: whether, with the same noise, it is linear in the field.

    Example:
        >>> def one_probe(field, x, noise):
        ...     v = noise(x)
        ...     (product,) = torch.autograd.grad(field(x), x, v, create_graph=True)
        ...     return (product * v).sum(1)
        >>> trace = FunctionTrace(one_probe)
        >>> x = torch.ones(4, 3)
        >>> value, estimates = trace(lambda x: x**2, x, CounterRNG.draw(4, None))
        >>> value.shape, estimates.shape
        (torch.Size([4, 3]), torch.Size([4, 1]))
    """

    function: Callable[[VectorField, Tensor, Noise], Tensor]
    probes: int | None = 1
    exact: bool = False
    linear: bool = False

    def __post_init__(self) -> None:
        check_function("function", self.function, "(field, x, noise) -> estimates")

    def products(self, d: int) -> int:
        return d if self.probes is None else self.probes

    def __call__(
        self, field: VectorField, x: Tensor, rng: CounterRNG, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return h(x) ``(m, d)`` and the estimates of the function, ``(m, k)``."""
        drawn: list[Tensor] = []

        def noise(like: Tensor) -> Tensor:
            seeds = rng.bits((len(drawn) + 1,), salt=7)[:, -1]
            drawn.append(CounterRNG(seeds, rng.counter).normals(tuple(like.shape[1:])).to(like))
            return drawn[-1]

        with torch.enable_grad():
            leaf = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            estimates = check_tensor("function", self.function(field, leaf, noise))
            value = field(leaf)
        if estimates.ndim not in (1, 2) or len(estimates) != len(x):
            raise ValueError(
                f"function: expected estimates of shape ({len(x)},) or ({len(x)}, k), got "
                f"{tuple(estimates.shape)}; it is one divergence for each row of x"
            )
        estimates = estimates.reshape(len(x), -1)
        return (value, estimates) if differentiable else (value.detach(), estimates.detach())


# --- likelihoods


@dataclass(frozen=True, repr=False)
class FunctionMethod(Named, Method):
    """A log-density ``(score, x) -> log p`` as a method of :func:`~scoresde.log_likelihood`.

    Args:
        function: from a score and points ``(batch, *event)`` to log p in nats ``(batch,)``, or to
            a pair of log p and a bound of its error, which is 0 otherwise.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE, log_likelihood
        >>> data = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], VPSDE())
        >>> method = FunctionMethod(lambda score, x: score.log_prob(x))
        >>> log_likelihood(data, torch.zeros(1, 2), method=method).log_prob
        tensor([-1.8379])
    """

    function: Callable[[Any, Tensor], Any]

    def __post_init__(self) -> None:
        check_function("function", self.function, "(score, x) -> log p")

    def __call__(self, settings: LikelihoodSettings, x: Tensor, rows: Tensor) -> Likelihood:
        """Return log p of the function; latent and prior mismatch are unknown, and NaN."""
        value = self.function(settings.flow.score.select(rows), x)
        log_prob, error = value if isinstance(value, tuple) else (value, torch.zeros_like(value))
        if check_tensor("function", log_prob).shape != x.shape[:1]:
            raise ValueError(
                f"function: expected shape ({len(x)},), one number for each point, got "
                f"{tuple(log_prob.shape)}; sum over the coordinates of each sample"
            )
        none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return Likelihood(
            log_prob=log_prob.to(x.dtype),
            standard_error=torch.zeros_like(log_prob, dtype=x.dtype),
            solver_error=error.to(x.dtype).expand(len(x)),
            prior_mismatch=torch.full_like(log_prob, torch.nan, dtype=x.dtype),
            latent=torch.full_like(x, torch.nan),
            evaluations=none,
            divergences=none,
            converged=log_prob.isfinite(),
            t_min=settings.flow.t_min,
            points=x,
        )
