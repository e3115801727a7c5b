"""Scores with a bug."""

import torch
from torch import nn

from gallery.bug import breaks
from scoresde import VPSDE, FunctionScore, GaussianMixture, ScoreModel
from scoresde._core.shapes import as_time, expand, flatten
from scoresde.scores import Score


def mixture(kind=GaussianMixture):
    means = torch.tensor([[-1.0, 0.5], [1.5, 1.0]])
    covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]])
    return kind(torch.tensor([0.4, 0.6]), means, covariances, VPSDE())


class _Mixture(GaussianMixture):
    """A known distribution, for subclasses with a bug."""

    def __init__(self):
        right = mixture()
        super().__init__(right.weights, right.means, right.covariances, VPSDE())


@breaks("predictions", "the sign of the score", mixture)
class NegatedScore(_Mixture):
    def forward(self, x, t):
        return -super().forward(x, t)


@breaks("predictions", "σ² instead of σ", mixture)
class ScaledTwice(_Mixture):
    """s = −ε̂/σ²."""

    def forward(self, x, t):
        return super().forward(x, t) / expand(self.sde.sigma(as_time(t)), x)


@breaks("Fokker–Planck", "a schedule off by one", mixture)
class OffByOne(_Mixture):
    """The score of the next of 1000 times."""

    def output(self, x, t):
        return super().output(x, (as_time(t) + 1e-3).clamp(max=1.0))


@breaks("Fokker–Planck", "time running backward", mixture)
class BackwardTime(_Mixture):
    def output(self, x, t):
        return super().output(x, 1.0 - as_time(t))


@breaks("Tweedie", "a missing factor α or σ", mixture)
class Unscaled(_Mixture):
    """x̂ = x + σ² s without the division by α."""

    def output(self, x, t):
        alpha, sigma = (expand(v(as_time(t)), x) for v in (self.sde.alpha, self.sde.sigma))
        clean = x + sigma**2 * super().output(x, t)
        return (alpha * clean - x) / sigma**2


@breaks("posterior covariance", "a field that is not a gradient", mixture)
class Rotational(_Mixture):
    def output(self, x, t):
        rotated = torch.stack([-x[:, 1], x[:, 0]], dim=1)
        return super().output(x, t) + 0.1 * rotated


@breaks("convolution", "a missing factor 2π, determinant or weight", mixture)
class Unweighted(_Mixture):
    """Weights that sum up to 2: a density of mass 2."""

    def log_prob(self, x, t=0.0):
        return super().log_prob(x, t) + 0.6931


class _Small(nn.Module):
    """A network of one layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))

    event_shape = (2,)

    def forward(self, x, label):
        return torch.tanh(self.layer(x)) + label[:, None]


def small(network=_Small):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreModel(network(), VPSDE())


@breaks("batch independence", "batch norm", small)
def batch_norm():
    class Normed(_Small):
        def forward(self, x, label):
            h = super().forward(x, label)
            return (h - h.mean(0)) / (h.std(0, correction=0) + 1e-3)

    return small(Normed)


@breaks("purity", "dropout that ignores eval()", small)
def dropout():
    class Dropping(_Small):
        def forward(self, x, label):
            return nn.functional.dropout(super().forward(x, label), 0.5)

    return small(Dropping)


@breaks("derivative", ".detach(), no_grad or numpy", small)
def numpy_inside():
    class ByNumPy(_Small):
        def forward(self, x, label):
            return torch.from_numpy(x.detach().numpy() ** 3) + 0 * super().forward(x, label)

    return small(ByNumPy)


@breaks("endpoints", "a label log σ or 1/t", small)
def inverse_time():
    class Inverse(_Small):
        def forward(self, x, label):
            return super().forward(x, 1 / (label - 1e-5))

    return small(Inverse)


@breaks("shapes", "a label of shape () or (batch, 1)", small)
def column_of_labels():
    class Column(_Small):
        def forward(self, x, label):
            return (torch.tanh(self.layer(x))[:, None] + label[:, None, None]).squeeze(0)

    return small(Column)


class _Norms(Score):
    """All data at 0, but scaled by the norm of the whole batch."""

    def __init__(self):
        super().__init__(VPSDE())

    def denoised(self, x, t):
        return x / (1 + flatten(x).norm())


@breaks(
    "batch independence",
    "a mean, norm or maximum over the batch",
    lambda: FunctionScore(_origin, VPSDE()),
)
class WholeBatchNorm(_Norms):
    pass


def _origin(x, t):
    return -x


@breaks("symmetry", "singles out an axis", mixture)
class NotEven(_Mixture):
    """It declares s(−x) = −s(x) for data that are not symmetric."""

    symmetries = (torch.neg,)


@breaks("endpoints", "is nan", small)
def not_at_time_zero():
    """x̂ is 0/0 at t = 0 itself, where x̂ = x."""

    class Ratio(Score):
        event_shape = (2,)

        def __init__(self):
            super().__init__(VPSDE())

        def denoised(self, x, t):
            sigma = expand(self.sde.sigma(as_time(t)), x)
            return x * (sigma / sigma)

    return Ratio()
