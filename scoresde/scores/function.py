"""A plain function as a score."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scoresde._core.shapes import Time, as_time, check_batch, check_like
from scoresde.scores.base import PredictionScore
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import SCORE, Prediction
from scoresde.sdes import SDE


class FunctionScore(PredictionScore):
    """A plain function ``(x, t) -> x-shaped`` as a Score.

    The only Score that a general, non-Gaussian SDE can have; there, ``prediction`` must be SCORE.

    Args:
        function: the score, or another ``prediction``, as a function of ``x`` ``(batch, *event)``
            and a float64 ``t`` ``()`` or ``(batch,)``.
        sde: the diffusion it belongs to.
        prediction: the parametrization of what the function returns.
        moments: mean and covariance of the data, if known.

    Example:
        >>> import torch
        >>> from scoresde import VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I) stay N(0, I)
        >>> score.denoised(torch.ones(1, 2), 1e-3)
        tensor([[0.9999, 0.9999]])
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        sde: SDE,
        prediction: Prediction = SCORE,
        moments: Moments | None = None,
    ) -> None:
        super().__init__(sde, prediction, moments)
        if not callable(function):
            raise TypeError(f"function: expected a callable (x, t), got {type(function).__name__}")
        self.function = function

    def output(self, x: Tensor, t: Time) -> Tensor:
        time = as_time(t, self.sde.T)
        check_batch(time, x)
        return check_like("function", self.function(x, time), x)
