r"""Several log-densities of the same points, and what separates them.

The probability flow, the reverse SDE and the straight path give one density if the score is that of
some data. A learned score is not quite: it need not be a gradient, nor satisfy the Fokker–Planck
equation of its diffusion, and what the methods then differ by, beyond their error budgets, measures
how far it is from being a score at all. Of flow and path the gap is zero in the mean for no other
reason; a bound also lies below by what makes it a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from scoresde.dequantization import bits_per_dim
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.likelihood.bound import VariationalBound
from scoresde.likelihood.flow import FlowIntegral
from scoresde.likelihood.path_integral import PathIntegral


@dataclass(frozen=True)
class Comparison(Likelihood):
    """The answers of several methods; as a :class:`Likelihood`, that of the first.

    Attributes:
        methods: the methods.
        answers: the likelihood by each of them.
    """

    methods: tuple[Method, ...]
    answers: tuple[Likelihood, ...]

    @property
    def gaps(self) -> Tensor:
        """Log p by each method less that by the first, in nats ``(methods, batch)``."""
        return torch.stack([each.log_prob for each in self.answers]) - self.log_prob

    @property
    def gap_errors(self) -> Tensor:
        """What the budgets of both methods explain of each gap, in nats ``(methods, batch)``."""
        return torch.stack([each.error for each in self.answers]) + self.error

    def joined(self, others: Sequence[Self]) -> Self:
        """Return these rows, and behind them those of ``others``."""
        rows = [each.answers for each in (self, *others)]
        answers = tuple(first.joined(rest) for first, *rest in zip(*rows, strict=True))
        return replace(super().joined(others), answers=answers)

    def __repr__(self) -> str:
        """Show a line for each method."""
        lines = [f"{len(self)} samples at t = {self.t_min:g}, means over them:", _HEAD]
        for method, each, gap, error in zip(
            self.methods, self.answers, self.gaps.detach(), self.gap_errors, strict=True
        ):
            name = type(method).__name__
            bits = bits_per_dim(each.log_prob.detach(), self.points.shape[1:])
            beyond = int((gap.abs() > error).sum())
            columns = (bits, gap, each.standard_error, each.solver_error, each.evaluations)
            means = [float(column.double().mean()) for column in columns]
            lines.append(_LINE.format(name, *means, beyond, int(each.converged.sum())))
        return "\n".join(lines)


_LINE = "{:<20} {:>9.4f} {:>11.4f} {:>10.2g} {:>12.2g} {:>11.0f} {:>14} {:>9}"
_HEAD = (
    "method                bits/dim  gap (nats)  std error solver error evaluations "
    "gap unexplained converged"
)


@dataclass(frozen=True)
class MethodComparison(Method):
    r"""Several methods at once; the result is that of the first, with all the others beside it.

    Each answer is what its method alone would give with the same generator.

    Args:
        methods: one or more; gaps are taken to the first.

    Raises:
        TypeError: if one of them is not a method.
        ValueError: if there is none.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE, log_likelihood
        >>> means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1)
        >>> mixture = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
        >>> both = MethodComparison((FlowIntegral(), PathIntegral()))
        >>> result = log_likelihood(mixture, torch.tensor([[0.0], [1.0]]), method=both)
        >>> result.gaps[1].abs() < result.gap_errors[1]  # a true score leaves no gap
        tensor([True, True])

    References:
        Song et al. 2021, arXiv:2101.09258, section 4, for the densities of flow and SDE; Lai et
        al., *FP-Diffusion*, 2023, arXiv:2210.04296, for what their difference costs.
    """

    methods: tuple[Method, ...] = (FlowIntegral(), PathIntegral(), VariationalBound())

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        if not self.methods:
            raise ValueError("methods: expected one or more, got none; such as FlowIntegral()")
        for method in self.methods:
            if not isinstance(method, Method):
                raise TypeError(f"methods: expected methods such as FlowIntegral(), got {method!r}")

    def __call__(self, query: LikelihoodSettings, x: Tensor, rows: Tensor) -> Comparison:
        """Return the answers of all methods for some rows."""
        answers = tuple(method(query, x, rows) for method in self.methods)
        return Comparison(**vars(answers[0]), methods=self.methods, answers=answers)
