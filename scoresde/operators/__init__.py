"""Linear observation operators: masks, downsampling, blurs, grayscale, any matrix or function."""

from scoresde.operators.base import DiagonalizedOperator, LinearOperator
from scoresde.operators.blur import Blur
from scoresde.operators.downsampling import AveragePool, Bicubic, Downsampling
from scoresde.operators.grayscale import Grayscale
from scoresde.operators.mask import Mask
from scoresde.operators.matrix import FunctionOperator, Matrix

__all__ = [
    "AveragePool",
    "Bicubic",
    "Blur",
    "DiagonalizedOperator",
    "Downsampling",
    "FunctionOperator",
    "Grayscale",
    "LinearOperator",
    "Mask",
    "Matrix",
]
