r"""Scores: the denoiser of a diffusion, and the quantities derived from it.

The denoiser is x̂(x, t) = E[x_0 | x_t = x]; for x_t = α x_0 + σ ε everything else is linear in it::

    noise ε̂ = (x − α x̂)/σ,      score s = ∇ log p_t = −ε̂/σ,      velocity v = α ε̂ − σ x̂,

(Tweedie's formula), and so is every parametrization in which networks are trained
(:mod:`scoresde.scores.predictions`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

from torch import Tensor, nn

from scoresde._core.checks import check_instance
from scoresde._core.shapes import Time, check_batch, linear_combination
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import DATA, NOISE, SCORE, VELOCITY, Prediction
from scoresde.sdes import SDE, GaussianSDE


class Score(nn.Module, ABC):
    """The score of a diffusion: define :meth:`denoised`, and the other quantities are derived.

    Wrappers (guidance, conditions, restrictions) are Scores again, so that samplers and likelihoods
    accept them like a network.

    Args:
        sde: the diffusion the score belongs to.
        moments: mean and covariance of the data, if known.

    Example:
        >>> import torch
        >>> from scoresde import VPSDE
        >>> class Origin(Score):  # all data at 0
        ...     def denoised(self, x, t):
        ...         return torch.zeros_like(x)
        >>> score = Origin(VPSDE())
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(score(x, 0.5), -x / score.sde.sigma(0.5) ** 2)
        True
    """

    def __init__(self, sde: SDE, moments: Moments | None = None) -> None:
        super().__init__()
        self.sde: Any = check_instance("sde", sde, SDE, "VPSDE()")
        self.moments = Moments() if moments is None else moments

    @abstractmethod
    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """Return x̂ = E[x_0 | x_t = x], shaped like ``x`` ``(batch, *event)``."""

    def forward(self, x: Tensor, t: Time) -> Tensor:
        """Return the score s = ∇ log p_t(x), shaped like ``x`` ``(batch, *event)``."""
        return self.predict(x, t, SCORE)

    @final
    def noise(self, x: Tensor, t: Time) -> Tensor:
        """Return ε̂ = E[ε | x_t = x], shaped like ``x``."""
        return self.predict(x, t, NOISE)

    @final
    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """Return v = α ε̂ − σ x̂, shaped like ``x``."""
        return self.predict(x, t, VELOCITY)

    def predict(self, x: Tensor, t: Time, prediction: Prediction) -> Tensor:
        """Return what a network of parametrization ``prediction`` would output.

        ``denoised``, ``noise``, ``velocity`` and the score itself are special cases. A subclass
        whose native output is not x̂ overrides this method, so that
        no precision is lost by converting through x̂.

        Args:
            x: states ``(batch, *event)``.
            t: time, a float, ``()`` or ``(batch,)``.
            prediction: the parametrization of the result: ``NOISE``, ``DATA``, ``SCORE``,
                ``VELOCITY``, ``FLOW``, ``edm(sigma_data)`` or another :class:`Prediction`.

        Returns:
            The converted output, shaped like ``x``.

        Raises:
            TypeError: if a conversion needs α and σ and the SDE is not a ``GaussianSDE``.
            ValueError: if ``t`` lies outside [0, T] or does not fit the batch.

        Example:
            >>> import torch
            >>> from scoresde import NOISE, VPSDE, FunctionScore
            >>> score = FunctionScore(lambda x, t: -x, VPSDE())
            >>> x = torch.ones(1, 2)
            >>> torch.equal(score.predict(x, 0.5, NOISE), score.noise(x, 0.5))
            True
        """
        return _convert(DATA, self.denoised(x, t), prediction, self.sde, x, t)

    def select(self, index: Tensor | slice) -> Score:
        """Return the score of some samples of the batch.

        Adaptive methods continue with the samples that are not finished, and large batches are
        evaluated in chunks. A score that stores one value per sample, such as a class label or an
        observation, overrides this method and indexes those values; any other returns itself.

        Args:
            index: which samples, an integer tensor or a slice of the batch dimension.

        Returns:
            A score for batches of the selected samples.

        Example:
            >>> import torch
            >>> from scoresde import MLP, VPSDE, ScoreModel
            >>> model = ScoreModel(MLP((2,), width=16, depth=1, classes=3), VPSDE())
            >>> score = model.given(classes=torch.tensor([0, 1, 2]))
            >>> score.select(torch.tensor([2])).condition["classes"]
            tensor([2])
        """
        return self

    def concatenate(self, other: Score, rows: int, others: int) -> Score | None:
        """Return one score for a batch of ``rows`` samples of this and ``others`` of the other.

        Guidance evaluates one network under several conditions in a single call by it.

        Args:
            other: the score of the samples that follow.
            rows: the number of samples this score is evaluated at, the first of the batch.
            others: the number of samples the other is evaluated at.

        Returns:
            The joint score, or None if one evaluation cannot replace two, as for two networks.
        """
        return None


class PredictionScore(Score):
    """A score given in any parametrization: :meth:`output` is in that of ``prediction``.

    Args:
        sde: the diffusion the score belongs to.
        prediction: the parametrization of :meth:`output`.
        moments: mean and covariance of the data, if known.
    """

    def __init__(
        self, sde: SDE, prediction: Prediction = NOISE, moments: Moments | None = None
    ) -> None:
        super().__init__(sde, moments)
        self.prediction = check_instance(
            "prediction",
            prediction,
            Prediction,
            "NOISE",
            "pass NOISE, DATA, SCORE, VELOCITY, FLOW or edm(sigma_data)",
        )

    @abstractmethod
    def output(self, x: Tensor, t: Time) -> Tensor:
        """Return the network's or function's value, shaped like ``x``; see ``prediction``."""

    @final
    def denoised(self, x: Tensor, t: Time) -> Tensor:
        return self.predict(x, t, DATA)

    def predict(self, x: Tensor, t: Time, prediction: Prediction) -> Tensor:
        return _convert(self.prediction, self.output(x, t), prediction, self.sde, x, t)


def _convert(
    source: Prediction, output: Tensor, target: Prediction, sde: SDE, x: Tensor, t: Time
) -> Tensor:
    """Convert an output from the parametrization ``source`` to ``target``, through x̂."""
    direct = target.directly(source, output, x)
    if direct is not None:
        return direct
    hint = f"{source} cannot be converted to {target}: a general SDE has a score, but no denoiser"
    gaussian = check_instance("sde", sde, GaussianSDE, "VPSDE()", hint)
    time = gaussian.interior(t)
    check_batch(time, x)
    source_residual, source_gain = source.coefficients(gaussian, time)
    target_residual, target_gain = target.coefficients(gaussian, time)
    skip = (source_residual - target_residual) / target_gain
    return linear_combination(skip, x, source_gain / target_gain, output)


def require_score(value: object, name: str = "score") -> Score:
    """Return the value, if it is a Score; ``TypeError`` with the usual hint otherwise.

    Args:
        value: what the user passed.
        name: the argument's name in the message.
    """
    hint = (
        "wrap a network as ScoreModel(network, sde), a function of (x, t) as "
        "FunctionScore(function, sde)"
    )
    return check_instance(name, value, Score, "ScoreModel(network, sde)", hint)
