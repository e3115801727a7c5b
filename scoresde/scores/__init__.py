"""Scores: networks with their SDE and parametrization, and the moments of the data."""

from scoresde.scores.base import PredictionScore, Score
from scoresde.scores.chunked import ChunkedScore
from scoresde.scores.combination import Combination
from scoresde.scores.function import FunctionScore
from scoresde.scores.gaussian_mixture import GaussianMixture
from scoresde.scores.labels import (
    IndexLabel,
    Label,
    LogSNRLabel,
    RatioLabel,
    SigmaLabel,
    TimeLabel,
    by_half_logsnr,
    by_index,
    by_ratio,
    by_sigma,
    by_time,
)
from scoresde.scores.model import LabelFunction, ScoreModel
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import (
    DATA,
    DENOISER,
    FLOW,
    NOISE,
    SCORE,
    VELOCITY,
    Coefficients,
    Prediction,
    edm,
)

__all__ = [
    "DATA",
    "DENOISER",
    "FLOW",
    "NOISE",
    "SCORE",
    "VELOCITY",
    "ChunkedScore",
    "Coefficients",
    "Combination",
    "FunctionScore",
    "GaussianMixture",
    "IndexLabel",
    "Label",
    "LabelFunction",
    "LogSNRLabel",
    "Moments",
    "Prediction",
    "PredictionScore",
    "RatioLabel",
    "Score",
    "ScoreModel",
    "SigmaLabel",
    "TimeLabel",
    "by_half_logsnr",
    "by_index",
    "by_ratio",
    "by_sigma",
    "by_time",
    "edm",
]
