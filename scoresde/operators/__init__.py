"""Linear observations of data: masks, fewer pixels, blurs, grey images, any matrix or function."""

from scoresde.operators.base import Diagonalised, LinearOperator
from scoresde.operators.blur import Blur
from scoresde.operators.colour import Grey
from scoresde.operators.downsampling import AveragePool, Bicubic, Downsampling
from scoresde.operators.mask import Mask
from scoresde.operators.matrix import FunctionOperator, Matrix

__all__ = [
    "AveragePool",
    "Bicubic",
    "Blur",
    "Diagonalised",
    "Downsampling",
    "FunctionOperator",
    "Grey",
    "LinearOperator",
    "Mask",
    "Matrix",
]
