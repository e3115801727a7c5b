r"""Diffusions with a Gaussian kernel: two curves, log α(t) and log σ(t), and what follows.

::

    x_t = α(t) x_0 + σ(t) ε,        λ = log α − log σ,        ρ = σ/α = e^{−λ}.

The linear SDE dx = f x dt + g dw with this kernel has::

    f = (log α)′,        g² = (σ²)′ − 2 f σ² = −2 σ² λ′,

so that λ must fall strictly. For s < t the kernel between two times is x_t = (α_t/α_s) x_s + …
with variance σ_t² − (α_t/α_s)² σ_s² = −σ_t² expm1(2(λ_t − λ_s)): a difference that never cancels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from scoresde._core.checks import check_floating
from scoresde._core.shapes import (
    Time,
    as_time,
    check_batch,
    check_data,
    expand,
    has_concrete_value,
    like_time,
)
from scoresde.sdes.base import SDE

_SMALLEST_TIME = 1e-12
"""Singular coefficients at t = 0, where log σ may be −∞, are evaluated at this fraction of T."""

_ITERATIONS = 40
"""Maximal number, for the inverse of λ; a few suffice unless a table's slope jumps."""

_FIXED_ITERATIONS = 12
"""Their number where a test for convergence would synchronize with the device."""

_ROUNDING = 1e-15
"""Relative error of λ at which its inverse has converged: that of its evaluation."""

_NODES = 1024


class GaussianSDE(SDE):
    r"""A diffusion with x_t = α(t) x_0 + σ(t) ε, given by ``log_alpha`` and ``log_sigma`` alone.

    A subclass defines the two curves as differentiable PyTorch functions of a float64 time; drift,
    diffusion, kernels, prior and inverse are derived here, once, and are final. Write the curves so
    that they are accurate near t = 0 (``expm1``, ``log1p``).

    Whatever time a user passes (a float, a tensor of any floating dtype), the curves of a subclass
    receive a float64 tensor in [0, T], ``()`` or ``(batch,)``: defining the subclass wraps them.

    Example:
        >>> class BrownianMotion(GaussianSDE):  # σ² = t
        ...     def log_alpha(self, t):
        ...         return torch.zeros_like(t)
        ...
        ...     def log_sigma(self, t):
        ...         return 0.5 * torch.log(t)
        >>> BrownianMotion().diffusion(torch.tensor([0.25, 1.0]))
        tensor([1., 1.])
        >>> BrownianMotion().log_sigma(1.0)
        tensor(0., dtype=torch.float64)

    References:
        Song et al. 2021, arXiv:2011.13456, section 3.4 and appendix B; Kingma et al., *Variational
        diffusion models*, 2021, arXiv:2107.00630, section 3 (λ, and the kernel between two times).
    """

    gaussian = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("log_alpha", "log_sigma"):
            curve = getattr(cls, name)
            if not getattr(curve, "__isabstractmethod__", False):
                setattr(cls, name, _of_any_time(curve))

    @abstractmethod
    def log_alpha(self, t: Any) -> Tensor:
        """Return log α(t), in float64, shaped like ``t``: elementwise and differentiable."""

    @abstractmethod
    def log_sigma(self, t: Any) -> Tensor:
        """Return log σ(t), in float64, shaped like ``t``: elementwise and differentiable."""

    @final
    def alpha(self, t: Time) -> Tensor:
        """Return the signal scale α(t), shaped like ``t``."""
        return like_time(self.log_alpha(as_time(t, self.T)).exp(), t)

    @final
    def sigma(self, t: Time) -> Tensor:
        """Return the noise scale σ(t), shaped like ``t``."""
        return like_time(self.log_sigma(as_time(t, self.T)).exp(), t)

    @final
    def half_logsnr(self, t: Time) -> Tensor:
        """Return λ(t) = log α − log σ, half the log signal-to-noise ratio, shaped like ``t``."""
        time = as_time(t, self.T)
        return like_time(self.log_alpha(time) - self.log_sigma(time), t)

    @final
    def time_at(self, half_logsnr: Time) -> Tensor:
        """Return the time t in [0, T] at which λ(t) has the given value: the inverse of λ.

        Found numerically in float64, for every diffusion; values beyond λ(0) and λ(T) give 0
        and T.

        Args:
            half_logsnr: λ, a float or a floating-point tensor of any shape; ±∞ is allowed.

        Returns:
            t, shaped like ``half_logsnr``; float64 for a float.

        Raises:
            TypeError: if ``half_logsnr`` is an integer tensor.
            ValueError: if it holds NaN.
        """
        if isinstance(half_logsnr, Tensor):
            check_floating("half_logsnr", half_logsnr)
        value = torch.as_tensor(half_logsnr, dtype=torch.float64).detach()
        target = value.reshape(-1)
        if has_concrete_value(target) and bool(torch.isnan(target).any()):
            raise ValueError("half_logsnr: expected numbers, got NaN; λ falls from λ(0) to λ(T)")
        return like_time(InverseLogSNR(self)(target).reshape(value.shape), half_logsnr)

    @final
    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return f(t) x with f = (log α)′, shaped like ``x``."""
        time = as_time(t, self.T)
        check_batch(time, x)
        return expand(self.rates(time)[0], x) * x

    @final
    def diffusion(self, t: Time) -> Tensor:
        """Return g(t) with g² = −2 σ² λ′, shaped like ``t``."""
        return like_time(self.rates(as_time(t, self.T))[1].sqrt(), t)

    @final
    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (f, g²), the coefficients of dx = f x dt + g dw, shaped like ``t``.

        Both come from automatic differentiation of the two curves; at t = 0 they are the limits.
        """
        time = self.interior(t)
        log_sigma, f, growth = self._derivatives(time)
        g2 = 2 * torch.exp(2 * log_sigma) * (growth - f)
        return like_time(f, t), like_time(g2, t)

    def _derivatives(self, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log σ, (log α)′ and (log σ)′."""
        both = torch.stack([time, time])  # one time per curve: one pass gives both derivatives
        plain = has_concrete_value(time) and not torch.is_inference_mode_enabled()
        if plain and not torch.is_grad_enabled():  # the same result, without a graph
            with torch.enable_grad():
                log_alpha, log_sigma = self._curves(both.requires_grad_())
                total, derivatives = log_alpha.sum() + log_sigma.sum(), torch.zeros_like(both)
                if total.requires_grad:  # a curve may be constant
                    (derivatives,) = torch.autograd.grad(total, both)
            return log_sigma.detach(), derivatives[0], derivatives[1]
        curves, vjp = torch.func.vjp(self._curves, both)  # type: ignore[misc]
        (derivatives,) = vjp((torch.ones_like(time), torch.ones_like(time)))
        return curves[1], derivatives[0], derivatives[1]

    def _curves(self, both: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_alpha(both[0]), self.log_sigma(both[1])

    @final
    def interior(self, t: Time) -> Tensor:
        """Return ``t`` as a float64 time, at least 10⁻¹² T.

        The derivative of log σ, and a score −ε/σ, are infinite at t = 0 itself.
        """
        return as_time(t, self.T).clamp(min=_SMALLEST_TIME * self.T)

    @final
    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of p(x_t | x_0) = N(α x_0, σ² I).

        Args:
            x0: clean data ``(batch, *event)``.
            t: float, ``()`` or ``(batch,)``.

        Returns:
            The mean, shaped like ``x0``, and the standard deviation, shaped like ``t``.
        """
        time = as_time(t, self.T)
        check_data("x0", x0)
        check_batch(time, x0)
        mean = expand(self.log_alpha(time).exp(), x0) * x0
        return mean, self.log_sigma(time).exp().to(x0.dtype)

    @final
    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Return scale and standard deviation of p(x_t | x_s) = N(scale · x_s, std² I), s <= t.

        Args:
            s: the earlier time, a float, ``()`` or ``(batch,)``.
            t: the later time, likewise.

        Returns:
            α_t/α_s and √(σ_t² − (α_t/α_s)² σ_s²), shaped like ``s`` and ``t`` together.

        Raises:
            ValueError: if some s > t; the kernel runs from data to noise.

        References:
            Kingma et al. 2021, arXiv:2107.00630, eq. 23.
        """
        early, late = as_time(s, self.T, "s"), as_time(t, self.T)
        if has_concrete_value(early) and has_concrete_value(late) and bool((early > late).any()):
            raise ValueError(
                f"s, t: expected s <= t, got s={s}, t={t}; the kernel runs from the earlier time s "
                "to the later t, swap them"
            )
        scale = torch.exp(self.log_alpha(late) - self.log_alpha(early))
        lost = -torch.expm1(2 * (self.half_logsnr(late) - self.half_logsnr(early)))
        std = torch.exp(self.log_sigma(late)) * lost.clamp(min=0.0).sqrt()
        std = torch.where(early == late, torch.zeros_like(std), std)
        template = t if isinstance(t, Tensor) else s
        return like_time(scale, template), like_time(std, template)

    @final
    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """Return x_t = α(t) x_0 + σ(t) ε.

        Args:
            x0: clean data ``(batch, *event)``.
            t: float, ``()`` or ``(batch,)``.
            noise: ε, a standard normal draw shaped like ``x0``.

        Returns:
            The noised data, shaped like ``x0``.
        """
        mean, std = self.marginal(x0, t)
        if check_floating("noise", noise).shape != x0.shape:
            raise ValueError(
                f"noise: expected the shape of x0, {tuple(x0.shape)}, got {tuple(noise.shape)}; "
                "draw it with torch.randn_like(x0)"
            )
        return mean + expand(std, x0) * noise

    def index_at(self, t: Time) -> Tensor:
        """Return the index at ``t`` in the table of a discretized diffusion, shaped like ``t``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no table to index: use a discretized SDE, or label the "
            "network by time, σ or log-SNR"
        )

    def prior_scale(self) -> float:
        """Return the standard deviation of the prior; σ(T), unless x_t has a limit distribution."""
        return float(self.sigma(self.T))

    def prior(
        self,
        event_shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Distribution:
        """Return N(0, prior_scale² I), an approximation of p_T that does not depend on the data."""
        zeros = torch.zeros(tuple(event_shape), dtype=dtype, device=device)
        normal = Normal(zeros, torch.full_like(zeros, self.prior_scale()), validate_args=False)
        return Independent(normal, zeros.ndim, validate_args=False)


def _of_any_time(curve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the method for any time: float64 tensors as they are, others converted and checked."""
    if hasattr(curve, "of_any_time"):  # inherited
        return curve

    @wraps(curve)
    def converted(self: GaussianSDE, t: Time) -> Tensor:
        if isinstance(t, Tensor) and t.dtype == torch.float64:  # as all derived methods pass it
            return curve(self, t)
        return curve(self, as_time(t, self.T))

    converted.of_any_time = True  # type: ignore[attr-defined]
    return converted


class InverseLogSNR:
    """The inverse of λ for many evaluations: brackets are looked up in a table of λ.

    Args:
        sde: the diffusion.
        nodes: size of the table; the larger, the fewer iterations per evaluation.
    """

    def __init__(self, sde: GaussianSDE, nodes: int = _NODES) -> None:
        self._sde, self._nodes = sde, nodes
        self._tabulate(torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, target: Tensor) -> Tensor:
        """Return t with λ(t) = target ``(n,)``: a bracket, narrowed by regula falsi."""
        if self._grid.device != target.device:
            self._tabulate(target.device)
        grid, curve = self._grid, self._curve
        after = torch.searchsorted(self._rising, -target).clamp(1, len(grid) - 1)
        low, high = grid[after - 1], grid[after]
        above, below = curve[after - 1] - target, curve[after] - target
        time, closest = torch.where(above < -below, low, high), torch.minimum(above, -below)
        fixed = torch.zeros_like(target)  # the end that the last step did not move: ±1
        tolerance, checked = _ROUNDING * target.abs().clamp(min=1.0), has_concrete_value(target)
        for _ in range(_ITERATIONS if checked else _FIXED_ITERATIONS):
            # a converged entry does not change while others continue
            active = (closest > tolerance) & (high - low > _ROUNDING * high)
            if checked and not bool(active.any()):
                break
            middle = (low * below - high * above) / (below - above)
            middle = torch.where((middle > low) & (middle < high), middle, 0.5 * (low + high))
            residual = self._sde.half_logsnr(middle) - target
            early = residual > 0
            # Illinois rule: halve the value at an end that did not move twice in a row
            above = torch.where(early, residual, torch.where(fixed < 0, 0.5 * above, above))
            below = torch.where(early, torch.where(fixed > 0, 0.5 * below, below), residual)
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
            fixed = torch.where(early, 1.0, -1.0)
            better = (residual.abs() < closest) & active
            time, closest = (
                torch.where(better, middle, time),
                torch.where(better, residual.abs(), closest),
            )
        time = torch.where(target >= curve[0], torch.zeros_like(time), time)
        return torch.where(target <= curve[-1], torch.full_like(time, self._sde.T), time)

    @torch.no_grad()
    def _tabulate(self, device: torch.device) -> None:
        parts = (  # fractions of T, dense where λ is steep
            torch.zeros(1, dtype=torch.float64),
            torch.logspace(-15, -3, self._nodes // 2, dtype=torch.float64),
            torch.linspace(1e-3, 1, self._nodes, dtype=torch.float64)[1:],
        )
        self._grid = self._sde.T * torch.cat(parts).to(device)
        self._curve = self._sde.half_logsnr(self._grid)
        self._rising = -self._curve


def log_complement(log_alpha: Tensor) -> Tensor:
    """Return log √(1 − α²), the log σ of a variance-preserving diffusion, to full precision."""
    return 0.5 * torch.log(-torch.expm1(2 * log_alpha))
