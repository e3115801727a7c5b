"""Divergence estimators with a bug."""

from dataclasses import dataclass

import torch

from gallery.bug import breaks
from scoresde._core.counter_rng import CounterRNG
from scoresde.testing.adapters import FunctionTrace
from scoresde.traces import ExactTrace, Gaussian, Hutchinson, ProbeDistribution, Rademacher

DENSE = {"kind": "symmetric", "d": 5}


def products(field, x, v):
    (rows,) = torch.autograd.grad(field(x), x, v, create_graph=True)
    return rows


def one_probe(field, x, noise):
    v = noise(x).sign()
    return (products(field, x, v) * v).sum(1)


def written_out():
    return FunctionTrace(one_probe, linear=True)


@breaks("unbiased", "no division by the number of probes", Hutchinson)
class Summed(Hutchinson):
    """Three probes, added up."""

    def __init__(self):
        super().__init__(probes=3)

    def __call__(self, field, x, rng, *, differentiable=False):
        value, estimates = super().__call__(field, x, rng, differentiable=differentiable)
        return value, estimates.sum(1, keepdim=True)


@dataclass(frozen=True)
class Uniform(ProbeDistribution):
    """Uniform on [−1, 1]: E vvᵀ = I/3."""

    def draw(self, rng, k, d):
        return 2 * rng.uniforms((k, d)) - 1


@breaks("unbiased", "as uniform ones", Hutchinson)
def uniform_probes():
    return Hutchinson(law=Uniform())


@breaks("batch independence", "one probe for all samples", written_out)
def shared_probe():
    def shared(field, x, noise):
        v = noise(x).sign()[:1].expand_as(x)
        return (products(field, x, v) * v).sum(1)

    return FunctionTrace(shared)


@breaks("random numbers", "torch.randn instead of rng", written_out)
def global_noise():
    def careless(field, x, noise):
        v = torch.randn_like(x)
        return (products(field, x, v) * v).sum(1)

    return FunctionTrace(careless)


@breaks("random numbers", "a counter that is left out", Hutchinson)
class FixedProbe(Hutchinson):
    """The same probe at every evaluation along the path."""

    def __call__(self, field, x, rng, *, differentiable=False):
        fixed = CounterRNG(rng.seeds, torch.zeros_like(rng.counter))
        return super().__call__(field, x, fixed, differentiable=differentiable)


@dataclass(frozen=True)
class NormalsAsSigns(Rademacher):
    """Normals, with the declared variance of signs."""

    def draw(self, rng, k, d):
        return Gaussian().draw(rng, k, d)


@breaks("zero variance", "normals instead of signs", Hutchinson)
def normals_as_signs():
    return Hutchinson(law=NormalsAsSigns())


@breaks("independence", "one probe used k times", lambda: Hutchinson(probes=2), **DENSE)
class OneProbeTwice(Hutchinson):
    def __call__(self, field, x, rng, *, differentiable=False):
        value, estimates = super().__call__(field, x, rng, differentiable=differentiable)
        return value, estimates.repeat(1, 2)


@breaks("variance", "the factor 1/k left out", lambda: Hutchinson(probes=4), **DENSE)
class OneProbesVariance(Hutchinson):
    def __init__(self):
        super().__init__(probes=4)

    def variance(self, jacobian):
        return self.distribution.variance(jacobian, 1)


@breaks("variance", "2 ‖J‖² instead of the symmetric part", Hutchinson, kind="antisymmetric")
class FrobeniusNorm(Hutchinson):
    def variance(self, jacobian):
        return 2 * (jacobian - jacobian.diagonal().diag()).square().sum()


@breaks("gradient", "create_graph left out", written_out)
def detached():
    def cut(field, x, noise):
        return one_probe(field, x, noise).detach() + 0 * x.sum(1)

    return FunctionTrace(cut, linear=True)


@breaks("nonlinear fields", "a finite difference that is too coarse", written_out)
def coarse_difference():
    def difference(field, x, noise):
        v = noise(x).sign()
        return ((field(x + v) - field(x)) * v).sum(1)

    return FunctionTrace(difference)


@breaks("nonlinear fields", "the Jacobian of another sample or of x = 0", written_out)
def at_the_origin():
    def origin(field, x, noise):
        return one_probe(field, 0 * x, noise)

    return FunctionTrace(origin)


@breaks("homogeneity", "an absolute value", ExactTrace)
def absolute():
    def positive(field, x, noise):
        return one_probe(field, x, noise).abs()

    return FunctionTrace(positive)


@breaks("constant fields", "allow_unused left out", ExactTrace)
def always_a_graph():
    return FunctionTrace(one_probe)


@breaks("shapes", "float64 results", written_out)
def promoted():
    def double(field, x, noise):
        return one_probe(field, x, noise).double()

    return FunctionTrace(double)


@breaks("full rank", "a probe too few", ExactTrace)
class OneRowShort(ExactTrace):
    """The sum over all rows of the Jacobian but the last."""

    def __call__(self, field, x, rng, *, differentiable=False):
        value, _, jacobian = self.linearize(field, x, rng, differentiable=differentiable)
        diagonal = jacobian.diagonal(dim1=1, dim2=2)
        return value, diagonal[:, : max(x.shape[1] - 1, 1)].sum(1, keepdim=True)
