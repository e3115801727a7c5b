"""The probability flow: coordinates, an initial-value problem, and its table on a fixed grid."""

from scoresde.flow.coordinates import (
    Coordinates,
    LogSNR,
    Rectified,
    Standardized,
    VarianceExploding,
    Windowed,
)

__all__ = [
    "Coordinates",
    "LogSNR",
    "Rectified",
    "Standardized",
    "VarianceExploding",
    "Windowed",
]
