"""Diffusions with a bug."""

import math

import torch
from torch.distributions import Independent, Normal

from gallery.bug import breaks
from scoresde import VESDE, VPSDE, SubVPSDE
from scoresde._core.shapes import as_time, expand
from scoresde.sdes.base import ReverseSDE
from scoresde.testing.adapters import FunctionSDE
from scoresde.testing.examples import OrnsteinUhlenbeck


@breaks("moment equations", "g instead of g²", VPSDE)
class SquaredDiffusion(VPSDE):
    """The noise is √β dw; here it is β dw."""

    def diffusion(self, t):
        return super().diffusion(t) ** 2


@breaks("moment equations", "the sign of the drift", VPSDE)
class GrowingDrift(VPSDE):
    def drift(self, x, t):
        return -super().drift(x, t)


@breaks("moment equations", "a factor 2 or ½", VPSDE)
class WholeRate(VPSDE):
    """dx = −β x dt: without the ½."""

    def drift(self, x, t):
        return 2 * super().drift(x, t)


@breaks("moment equations", "β(t) instead of ∫β", SubVPSDE)
class SubVPOfVP(SubVPSDE):
    """The noise of VP with the variance of sub-VP."""

    def diffusion(self, t):
        return VPSDE(self.beta_min, self.beta_max, self.T).diffusion(t)


@breaks("rate", "e^{−B} for e^{−2B}", SubVPSDE)
class SubVPHalfway(SubVPSDE):
    """σ² = 1 − e^{−2B}, which is g²/β of the sub-VP SDE and not its variance."""

    def log_sigma(self, t):
        return 0.5 * torch.log(-torch.expm1(4 * self.log_alpha(t)))


@breaks("perturbation", "σ² instead of σ", VPSDE)
class VarianceForStd(VPSDE):
    def marginal(self, x0, t):
        mean, std = super().marginal(x0, t)
        return mean, std**2


@breaks("semigroup", "although the scale is not 1", VPSDE)
class ExplodingKernel(VPSDE):
    """The kernel of VE, in an SDE with α < 1."""

    def transition(self, s, t):
        scale, _ = super().transition(s, t)
        std = (self.sigma(t) ** 2 - self.sigma(s) ** 2).clamp(min=0).sqrt()
        return scale, std


@breaks("log-SNR", "time running from noise to data", VPSDE)
class FromNoiseToData(VPSDE):
    """The convention of flow matching: t = 1 is the data."""

    def log_alpha(self, t):
        return super().log_alpha(self.T - as_time(t, self.T))


@breaks("log-SNR", "instead of the half", VPSDE)
class FullLogSNR(VPSDE):
    def half_logsnr(self, t):
        return 2 * super().half_logsnr(t)


@breaks("endpoints", "data scaled before", VPSDE)
class RateForIntegral(VPSDE):
    """α = e^{−β(t)/2}."""

    def log_alpha(self, t):
        return -0.5 * self.beta(t)


@breaks("endpoints", "1/t or log 0 at an end", VPSDE)
class DividedByTime(VPSDE):
    """The mean rate B(t)/t, which is 0/0 at the data end."""

    def log_alpha(self, t):
        time = as_time(t, self.T)
        return -0.5 * time * ((0.1 * time + 9.95 * time**2) / time)


@breaks("prior", "N(0, I) for a variance-exploding SDE", VESDE)
class StandardPrior(VESDE):
    def prior(self, event_shape, *, dtype=None, device=None):
        zeros = torch.zeros(tuple(event_shape), dtype=dtype, device=device)
        normal = Normal(zeros, torch.ones_like(zeros), validate_args=False)
        return Independent(normal, zeros.ndim, validate_args=False)


@breaks("single precision", "write −expm1(−B)", VPSDE)
class SinglePrecision(VPSDE):
    """σ = √(1 − e^{−B}), in the dtype of t: 2.4 % off at t = 1e-5."""

    def sigma(self, t):
        t = torch.as_tensor(t)
        return (1 - torch.exp(-(0.1 * t + 9.95 * t**2))).sqrt()


@breaks("serialization", "a table stored in float32", VPSDE)
class HalvedTable(VPSDE):
    """A parameter that .half() rounds."""

    def __init__(self):
        super().__init__()
        self.register_parameter("rate", torch.nn.Parameter(torch.tensor(19.9)))

    def log_alpha(self, t):
        time = as_time(t, self.T)
        return -0.5 * (0.1 * time + 0.5 * self.rate.double() * time**2)

    def half(self):
        self.rate.data = self.rate.data.half()
        return self


@breaks("shapes", "[:, None, None, None]", OrnsteinUhlenbeck)
class ForImagesOnly(OrnsteinUhlenbeck):
    def drift(self, x, t):
        rate = self.theta * torch.ones(len(x), dtype=x.dtype)
        return rate[:, None, None, None] * (self.mu - x)


@breaks(
    "batch independence", "broadcasting (batch,) against the last axis", VPSDE, event_shape=(3,)
)
class LastAxis(VPSDE):
    """β(t) x with t (batch,) and x (batch, d): no error where d happens to be the batch."""

    def drift(self, x, t):
        return -0.5 * self.beta(t).to(x.dtype) * x


@breaks("batch independence", "a mean or norm over the batch", OrnsteinUhlenbeck)
class BatchMean(OrnsteinUhlenbeck):
    def drift(self, x, t):
        return self.theta * (x.mean(0, keepdim=True) - x)


@breaks("purity", "in-place operations on x", OrnsteinUhlenbeck)
class InPlace(OrnsteinUhlenbeck):
    def drift(self, x, t):
        return x.sub_(self.mu).mul_(-self.theta)


@breaks("transforms", ".detach() or no_grad around the drift", OrnsteinUhlenbeck)
class Detached(OrnsteinUhlenbeck):
    def drift(self, x, t):
        return super().drift(x.detach(), t)


@breaks("bad input", "clamping times silently", VPSDE)
class Clamping(VPSDE):
    def drift(self, x, t):
        return super().drift(x, torch.as_tensor(t).clamp(0, self.T))


@breaks("simulation", "a factor √2", VPSDE)
class DoubledNoise(VPSDE):
    """g² = 2β, with the curves of g² = β."""

    def diffusion(self, t):
        return math.sqrt(2) * super().diffusion(t)


class _Reversed(ReverseSDE):
    def drift(self, x, t):
        time = as_time(t, self.T)
        weight = 0.5 * (1 + self._eta(time) ** 2) * self.sde.diffusion(time)
        return self.sde.drift(x, time) - expand(weight, x) * self.score(x, time)


@breaks("reversal", "g instead of g²", VPSDE)
class ReversedByG(VPSDE):
    def reverse(self, score, eta=1.0, event_shape=None):
        return _Reversed(self, score, eta, event_shape)


@breaks("shapes", "a float instead of a tensor", OrnsteinUhlenbeck)
def constant_of_one_time():
    """g as one number, whatever the shape of t."""

    class Constant(FunctionSDE):
        def diffusion(self, t):
            return torch.tensor([1.0])

    return Constant(lambda x, t: -x, lambda t: 1.0 + 0 * t)


@breaks("finite", "the square root of a negative number", VPSDE)
class NotANumber(VPSDE):
    """σ = √(1 − e^B), the square root of a negative number."""

    def log_sigma(self, t):
        return torch.log(torch.sqrt(-torch.expm1(-2 * self.log_alpha(t))))


@breaks("batch independence", "the value itself is NaN", VPSDE)
class NotANumberEither(NotANumber):
    """NaN is not reported as a mean or norm over the batch."""


@breaks("endpoints", "at t = tensor", OrnsteinUhlenbeck)
def not_for_tensors():
    """0/0 where the time 0 is a tensor."""

    class Ratio(FunctionSDE):
        def diffusion(self, t):
            return super().diffusion(t) * (t / t if torch.is_tensor(t) else 1.0)

    return Ratio(lambda x, t: -x, lambda t: 1.0 + 0 * t)
