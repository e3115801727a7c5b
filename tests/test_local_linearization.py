"""Local coordinates agree with automatic differentiation and solve their model exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from scoresde import VESDE, VPSDE, GaussianMixture, GaussianSDE, Moments, log_likelihood
from scoresde._core.counter_rng import CounterRNG
from scoresde.flow.linearization import DenoiserLinearization
from scoresde.flow.probability_flow import GaussianProbabilityFlow
from scoresde.solvers.local_linearization import IDENTITY, EigenCoordinates, LocalCoordinates
from scoresde.traces import ExactTrace

M, D = 3, 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def single(*values: Tensor) -> tuple[Tensor, ...]:
    """The values with a history of one node, ``(m, 1, …)``."""
    return tuple(value.unsqueeze(1) for value in values)


def gaussian(sde: GaussianSDE, d: int = D) -> GaussianMixture:
    """A Gaussian with standard deviations from 0.02 to 2 and unknown moments."""
    axes = torch.linalg.qr(rand(d, d))[0]
    stds = torch.logspace(-1.7, 0.3, d, dtype=torch.float64)
    covariance = axes @ torch.diag(stds**2) @ axes.T
    score = GaussianMixture(torch.ones(1), rand(1, d, seed=1), covariance[None], sde)
    score.moments = Moments()
    return score


def flow() -> GaussianProbabilityFlow:
    means, covariances = rand(2, D), torch.eye(D).expand(2, D, D)
    score = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
    return GaussianProbabilityFlow(score, (D,))


def linearization() -> DenoiserLinearization:
    """One with eigenvalues below 0, in [0, 1), and above 1."""
    axes = torch.linalg.qr(rand(M, D, D, seed=2))[0]
    eigenvalues = torch.tensor([-0.5, 0.3, 0.99, 40.0], dtype=torch.float64).expand(M, D)
    ratio = torch.full((M, 1), 0.4, dtype=torch.float64)
    sensitivity = axes @ torch.diag_embed(eigenvalues) @ axes.mT
    w, denoised = rand(M, D, seed=3), rand(M, D, seed=4)
    return DenoiserLinearization.at(flow().coordinates, ratio, w, denoised, sensitivity)


LOCAL_COORDINATES = {
    "identity": IDENTITY,
    "eigenvectors": EigenCoordinates.from_jacobian(rand(M, D, D)),
    "denoiser": linearization(),
}


@pytest.mark.parametrize("local", LOCAL_COORDINATES.values(), ids=LOCAL_COORDINATES)
def test_local_coordinates_are_a_change_of_variables(local: LocalCoordinates) -> None:
    """ζ, its slope, its volume and its divergence, against autograd along a curve z(τ)."""
    tau = torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64)
    z, velocity, rates = rand(M, D, seed=5), rand(M, D, seed=6), rand(M, seed=7)

    def to_zeta(tau: Tensor, z: Tensor) -> Tensor:
        return local.to_local(*single(tau, z, velocity, rates))[0].squeeze(1)

    zeta, slope, q = (v.squeeze(1) for v in local.to_local(*single(tau, z, velocity, rates)))
    torch.testing.assert_close(local.from_local(tau, zeta), z)
    tangent = (torch.ones_like(tau), velocity)
    torch.testing.assert_close(torch.func.jvp(to_zeta, (tau, z), tangent)[1], slope)
    for i in range(M):
        jacobian = torch.func.jacrev(lambda v, i=i: local.from_local(tau, v)[i])(zeta)[:, i]
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], local.log_volume(tau)[i])
    _, expansion = torch.func.jvp(local.log_volume, (tau,), (torch.ones_like(tau),))
    torch.testing.assert_close(q, rates - expansion)


def test_values_are_the_jacobian_that_the_linearization_leaves() -> None:
    """At the point itself ζ′ = 0, and ∂ζ′/∂ζ is the diagonal matrix of ``values``."""
    path = flow()
    path.score = gaussian(VPSDE())
    tau, z = torch.full((M,), 0.7, dtype=torch.float64), rand(M, D, seed=8)
    rng = CounterRNG.draw(M, seeded(0))
    local = path.evaluate(tau, z, slice(None), ExactTrace(), rng, local_coordinates=True).local
    assert local.values is not None

    def slope(zeta: Tensor) -> Tensor:
        point = local.from_local(tau, zeta)
        velocity = path.evaluate(tau, point, slice(None)).velocity
        return local.to_local(*single(tau, point, velocity, tau))[1].squeeze(1)

    zeta = local.to_local(*single(tau, z, z, tau))[0].squeeze(1)
    assert slope(zeta).abs().max() < 1e-9
    for i in range(M):
        jacobian = torch.func.jacrev(lambda v, i=i: slope(v)[i])(zeta)[:, i]
        torch.testing.assert_close(jacobian, torch.diag(local.values[i]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_gaussians_of_unknown_moments_cost_few_evaluations(sde: GaussianSDE) -> None:
    score = gaussian(sde)
    x = score.sample(8, sde.t_min, seeded(1), dtype=torch.float64)
    alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
    covariance = alpha**2 * score.covariances[0] + sigma**2 * torch.eye(D)
    terminal = MultivariateNormal(alpha * score.means[0], covariance)
    result = log_likelihood(score, x, prior=terminal)
    assert (result.log_prob - score.log_prob(x, sde.t_min)).abs().max() < 1e-5
    assert result.evaluations.max() < 20


def test_relocated_slopes_are_those_of_the_flow_to_first_order() -> None:
    """v(z) + J (to − z) has an error of second order; without a Jacobian the point is unchanged."""
    means, stds = 0.5 * rand(2, D), torch.tensor([0.3, 0.6], dtype=torch.float64)
    covariances = stds[:, None, None] ** 2 * torch.eye(D, dtype=torch.float64)
    path = GaussianProbabilityFlow(
        GaussianMixture(torch.ones(2), means, covariances, VPSDE()), (D,)
    )
    tau = torch.tensor([0.2, 0.7, 1.3], dtype=torch.float64)
    z, change = rand(M, D, seed=8), rand(M, D, seed=9)
    rng = CounterRNG.draw(M, seeded(0))
    here = path.evaluate(tau, z, slice(None), ExactTrace(), rng, local_coordinates=True)
    errors = []
    for size in (1e-3, 1e-4):
        point, slope = here.local.relocate(tau, z, here.velocity, z + size * change)
        truth = path.evaluate(tau, point, slice(None)).velocity
        assert torch.equal(point, z + size * change)
        errors.append(float((slope - truth).abs().max()))
        assert errors[-1] < 0.05 * float((truth - here.velocity).abs().max())
    assert 80 < errors[0] / errors[1] < 120
    assert torch.equal(IDENTITY.relocate(tau, z, here.velocity, z + change)[0], z)


def test_relocated_slopes_of_a_linear_flow_are_exact() -> None:
    jacobian = rand(M, D, D)
    jacobian = 0.5 * (jacobian + jacobian.mT)
    z, to, tau = rand(M, D, seed=8), rand(M, D, seed=9), torch.zeros(M, dtype=torch.float64)
    slope, expected = (torch.einsum("mij,mj->mi", jacobian, point) for point in (z, to))
    point, relocated = EigenCoordinates.from_jacobian(jacobian).relocate(tau, z, slope, to)
    assert torch.equal(point, to)
    torch.testing.assert_close(relocated, expected)
