r"""Integer data and densities: dequantization, bounds on log P, bits per dimension.

Levels k in {0, ..., L-1} own bins that tile an interval of the model's coordinates::

    bin(k) = shift + width · [k, k+1),    width = scale / L,    range [shift, shift + scale],

so ``scale=2, shift=-1`` is the convention of data in [-1, 1] and ``scale=1, shift=0`` that of
[0, 1].  A density p gives level k the probability P(k) = ∫_bin(k) p(x) dx. For any distribution
q(u | k) of the position u ∈ [-½, ½], in bin widths from the center, Jensen's inequality gives::

    log P(k) ≥ E[log (1/K) Σ_i p(x_i) width^d / q(u_i | k)],    x_i = center(k) + width · u_i.

K = 1 is the variational bound; K > 1, the importance-weighted one, is tighter and tends to log P(k)
as K grows.  With uniform noise log q = 0, and at K = 1, in bits per dimension::

    −log₂ P(k) / d ≤ E[−log p(x)] / (d ln 2) − log₂ width;

for 256 levels the offset −log₂ width is 7 in [-1, 1] and 8 in [0, 1].

References:
    Theis, van den Oord and Bethge, "A note on the evaluation of generative models", ICLR 2016.
    Ho et al., "Flow++", ICML 2019 (variational dequantization).
    Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
    Zheng, Lu, Chen and Zhu, "Improved techniques for maximum likelihood estimation for diffusion
    ODEs", ICML 2023 (truncated-normal dequantization).
"""

from scoresde.dequantization.bins import dequantization_log_prob, dequantize, quantize
from scoresde.dequantization.bounds import DequantizedBound, bits_per_dim, dequantized_bound
from scoresde.dequantization.detection import check_dequantized, looks_quantized
from scoresde.dequantization.noise import (
    Dequantization,
    TruncatedNormalDequantization,
    UniformDequantization,
)

__all__ = [
    "Dequantization",
    "DequantizedBound",
    "TruncatedNormalDequantization",
    "UniformDequantization",
    "bits_per_dim",
    "check_dequantized",
    "dequantization_log_prob",
    "dequantize",
    "dequantized_bound",
    "looks_quantized",
    "quantize",
]
