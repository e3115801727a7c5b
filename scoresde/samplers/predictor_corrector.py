"""Predictor–corrector sampling: two samplers, alternating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from scoresde._core.checks import check_instance, check_integer
from scoresde.samplers.base import Noise, Sampler
from scoresde.scores import Score
from scoresde.sdes import SDE


@dataclass(frozen=True)
class NoPredictor(Sampler):
    """The predictor "none" of Song et al., which leaves the state unchanged.

    With it, :class:`PredictorCorrector` is annealed Langevin dynamics.

    Example:
        >>> from scoresde.samplers import AnnealedLangevin
        >>> PredictorCorrector(NoPredictor(), AnnealedLangevin(0.176), corrections=5).predictor
        NoPredictor()
    """

    @property
    def corrects(self) -> bool:
        return True

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Return the state unchanged; no evaluation."""
        return x, None


class PredictorCorrectorState(NamedTuple):
    """The states of both samplers, and the last time of the grid."""

    predictor: Any
    corrector: Any
    last: float


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Corrections at t, then a prediction from t to s, in the order of the official code.

    Any sampler is a predictor; a sampler whose steps leave p_t invariant is a corrector
    (:class:`~scoresde.samplers.Langevin`, :class:`~scoresde.samplers.AnnealedLangevin`,
    :class:`~scoresde.samplers.MALA`). The last state is a prediction. Without a predictor
    (:class:`NoPredictor`) there is none, and the last step corrects at the last time as well: N
    steps between N + 1 noise levels make ``corrections`` corrections at each level.

    Args:
        predictor: the sampler that makes the step from t to s, and whose times are used.
        corrector: the sampler of the corrections.
        corrections: number of corrections at each time.

    Raises:
        TypeError: if ``predictor`` or ``corrector`` is not a Sampler.
        ValueError: if ``corrections`` is negative.

    Example:
        >>> from scoresde.samplers import Langevin, ReverseDiffusion
        >>> PredictorCorrector(ReverseDiffusion(), Langevin(snr=0.16)).default_steps
        1000

    References:
        Song et al. 2021, arXiv:2011.13456, algorithm 1, section 4.2 and appendix G. Algorithms 2
        and 3 correct after the prediction, which differs only in the first and the last half step;
        Song & Ermon 2019, arXiv:1907.05600, algorithm 1 (no predictor).
    """

    predictor: Sampler
    corrector: Sampler
    corrections: int = 1

    def __post_init__(self) -> None:
        for name in ("predictor", "corrector"):
            check_instance(name, getattr(self, name), Sampler, "Langevin()")
        check_integer("corrections", self.corrections, minimum=0)

    @property
    def default_steps(self) -> int:
        return self.predictor.default_steps

    @property
    def corrects(self) -> bool:
        """Whether there is no predictor, as in annealed Langevin dynamics."""
        return self.predictor.corrects

    def times(self, sde: SDE, steps: int, std: float = 1.0) -> Tensor:
        return self.predictor.times(sde, steps, std)

    def init(self, score: Score, x: Tensor, times: Tensor) -> PredictorCorrectorState:
        return PredictorCorrectorState(
            self.predictor.init(score, x, times),
            self.corrector.init(score, x, times),
            float(times.reshape(-1)[-1]),
        )

    def step(
        self,
        score: Score,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: PredictorCorrectorState,
        noise: Noise,
    ) -> tuple[Tensor, PredictorCorrectorState]:
        """The evaluations of the corrections and of the predictor (see :meth:`Sampler.step`)."""
        predictor, corrector, last = state
        for _ in range(self.corrections):
            x, corrector = self.corrector.step(score, x, t, s, corrector, noise)
        x, predictor = self.predictor.step(score, x, t, s, predictor, noise)
        if self.corrects and float(s) == last:
            for _ in range(self.corrections):
                x, corrector = self.corrector.step(score, x, s, s, corrector, noise)
        return x, PredictorCorrectorState(predictor, corrector, last)

    def end(self, score: Score, x: Tensor, t: Tensor, state: PredictorCorrectorState) -> Tensor:
        return self.predictor.end(score, x, t, state.predictor)
