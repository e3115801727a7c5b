r"""Several estimates of the log-density of the same points, and their differences.

The densities of the probability flow, of the reverse SDE and of the integral along a straight path
agree if the score is that of some data. A learned score need not be a gradient, nor satisfy the
Fokker–Planck equation of its diffusion; differences beyond the error budgets measure how far it is
from doing so. For flow and path there is no other reason for a difference in the mean; a
variational bound is also lower by its own gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from scoresde._core.checks import check_instance
from scoresde.dequantization import bits_per_dim
from scoresde.likelihood.base import Likelihood, LikelihoodSettings, Method
from scoresde.likelihood.bound import VariationalBound
from scoresde.likelihood.flow import FlowIntegral
from scoresde.likelihood.path_integral import PathIntegral


@dataclass(frozen=True)
class LikelihoodComparison(Likelihood):
    """The results of several methods; as a :class:`Likelihood`, that of the first.

    Attributes:
        methods: the methods.
        results: the likelihood by each of them.
    """

    methods: tuple[Method, ...]
    results: tuple[Likelihood, ...]

    @property
    def gaps(self) -> Tensor:
        """Log p by each method minus log p by the first, in nats ``(methods, batch)``."""
        return torch.stack([result.log_prob for result in self.results]) - self.log_prob

    @property
    def gap_errors(self) -> Tensor:
        """The errors of each method and of the first, added, in nats ``(methods, batch)``."""
        return torch.stack([result.error for result in self.results]) + self.error

    def concatenate(  # pyright: ignore[reportIncompatibleMethodOverride] (rows of one kind)
        self, others: Sequence[Self]
    ) -> Self:
        rows = [each.results for each in (self, *others)]
        results = tuple(first.concatenate(more) for first, *more in zip(*rows, strict=True))
        return replace(super().concatenate(others), results=results)

    def __repr__(self) -> str:
        """Return a table with a line for each method."""
        lines = [f"{len(self)} samples at t = {self.t_min:g}, means over them:", _HEAD]
        for method, result, gap, error in zip(
            self.methods, self.results, self.gaps.detach(), self.gap_errors, strict=True
        ):
            bits = bits_per_dim(result.log_prob.detach(), self.points.shape[1:])
            unexplained = int((gap.abs() > error).sum())
            columns = (bits, gap, result.standard_error, result.solver_error, result.evaluations)
            means = [float(column.double().mean()) for column in columns]
            counts = (unexplained, int(result.converged.sum()))
            lines.append(_LINE.format(type(method).__name__, *means, *counts))
        return "\n".join(lines)


_LINE = "{:<20} {:>9.4f} {:>11.4f} {:>10.2g} {:>12.2g} {:>11.0f} {:>14} {:>9}"
_HEAD = (
    "method                bits/dim  gap (nats)  std error solver error evaluations "
    "gap unexplained converged"
)


@dataclass(frozen=True)
class MethodComparison(Method):
    r"""Several methods at once; the result is that of the first, with those of all as attribute.

    Each result is the same as that of its method alone with the same generator.

    Args:
        methods: one or more; gaps are differences from the first.

    Raises:
        TypeError: if one of them is not a method.
        ValueError: if there is none.

    Example:
        >>> from scoresde import GaussianMixture, VPSDE, log_likelihood
        >>> means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1)
        >>> mixture = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
        >>> both = MethodComparison((FlowIntegral(), PathIntegral()))
        >>> result = log_likelihood(mixture, torch.tensor([[0.0], [1.0]]), method=both)
        >>> result.gaps[1].abs() < result.gap_errors[1]  # no gap for a true score
        tensor([True, True])

    References:
        Song et al. 2021, arXiv:2101.09258, section 4, for the densities of flow and SDE; Lai et
        al., *FP-Diffusion*, 2023, arXiv:2210.04296, for the effect of their difference.
    """

    methods: tuple[Method, ...] = (FlowIntegral(), PathIntegral(), VariationalBound())

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        if not self.methods:
            raise ValueError(
                "methods: expected one or more, got none; pass methods such as FlowIntegral()"
            )
        for i, method in enumerate(self.methods):
            check_instance(f"methods[{i}]", method, Method, "FlowIntegral()")

    def __call__(
        self, settings: LikelihoodSettings, x: Tensor, rows: Tensor
    ) -> LikelihoodComparison:
        results = tuple(method(settings, x, rows) for method in self.methods)
        return LikelihoodComparison(**vars(results[0]), methods=self.methods, results=results)
