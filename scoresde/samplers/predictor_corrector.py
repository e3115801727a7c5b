"""Predictor–corrector sampling: two samplers in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde._core.checks import check_integer
from scoresde.samplers.base import Noise, Sampler
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class NoPredictor(Sampler):
    """No prediction, published as the predictor "none", for annealed Langevin dynamics.

    Example:
        >>> from scoresde.samplers import AnnealedLangevin
        >>> PredictorCorrector(NoPredictor(), AnnealedLangevin(0.176), corrections=5).predictor
        Stay()
    """

    @property
    def corrects(self) -> bool:
        """Yes: it stays at its time."""
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Leave the state as it is; no evaluation."""
        return x, None


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Correct at t, then predict from t to s, as the official code does.

    Any sampler predicts; one that stays at its time (:class:`~scoresde.samplers.Langevin`,
    :class:`~scoresde.samplers.AnnealedLangevin`) corrects. The last state is a prediction, to be
    denoised.

    Args:
        predictor: the sampler that goes from t to s, and whose grid is used.
        corrector: the sampler that improves the state at t.
        corrections: how many corrections there are at each time.

    Example:
        >>> from scoresde.samplers import Langevin, ReverseDiffusion
        >>> PredictorCorrector(ReverseDiffusion(), Langevin(snr=0.16)).default_steps
        1000

    References:
        Song et al. 2021, arXiv:2011.13456, algorithm 1, section 4.2 and appendix G (algorithms 2
        and 3 correct after the prediction; the order of the two in a run differs by its first and
        last half step only).
    """

    predictor: Sampler
    corrector: Sampler
    corrections: int = 1

    def __post_init__(self) -> None:
        for name in ("predictor", "corrector"):
            if not isinstance(member := getattr(self, name), Sampler):
                raise TypeError(f"{name}: expected a Sampler such as Langevin(), got {member!r}")
        check_integer("corrections", self.corrections, minimum=0)

    @property
    def default_steps(self) -> int:
        """How many steps the predictor would make."""
        return self.predictor.default_steps

    @property
    def corrects(self) -> bool:
        """Whether the predictor stays at its time, as in annealed Langevin dynamics."""
        return self.predictor.corrects

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        """Return the predictor's grid ``(N+1,)``."""
        return self.predictor.times(sde, steps, std)

    def init(self, score: Score, x: Tensor, times: Tensor) -> tuple[Any, Any]:
        """Return what both start with."""
        return self.predictor.init(score, x, times), self.corrector.init(score, x, times)

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: tuple[Any, Any], noise: Noise
    ) -> tuple[Tensor, tuple[Any, Any]]:
        """Go from t to s < t; one evaluation for each correction and those of the predictor."""
        predicting, correcting = state
        for _ in range(self.corrections):
            x, correcting = self.corrector.step(score, x, t, s, correcting, noise)
        x, predicting = self.predictor.step(score, x, t, s, predicting, noise)
        return x, (predicting, correcting)

    def end(self, score: Score, x: Tensor, t: Tensor, state: tuple[Any, Any]) -> Tensor:
        """Return the predictor's sample of the last state."""
        return self.predictor.end(score, x, t, state[0])
