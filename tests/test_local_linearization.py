"""Frames against automatic differentiation, and what they are for: models of the flow exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from scoresde import VESDE, VPSDE, GaussianMixture, GaussianSDE, Moments, log_likelihood
from scoresde._core.counter_rng import CounterRNG
from scoresde.flow.probability_flow import GaussianProbabilityFlow
from scoresde.flow.linearization import DenoiserLinearization
from scoresde.solvers.local_linearization import IDENTITY, EigenCoordinates, LocalCoordinates
from scoresde.traces import ExactTrace

M, D = 3, 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def bell(sde: GaussianSDE, d: int = D) -> GaussianMixture:
    """A Gaussian, stretched from 0.02 to 2, whose moments nobody knows."""
    turned = torch.linalg.qr(rand(d, d))[0]
    stds = torch.logspace(-1.7, 0.3, d, dtype=torch.float64)
    covariance = turned @ torch.diag(stds**2) @ turned.T
    score = GaussianMixture(torch.ones(1), rand(1, d, seed=1), covariance[None], sde)
    score.moments = Moments()
    return score


def flow() -> GaussianProbabilityFlow:
    means, covariances = rand(2, D), torch.eye(D).expand(2, D, D)
    return GaussianProbabilityFlow(
        GaussianMixture(torch.ones(2), means, covariances, VPSDE()), (D,)
    )


def posterior() -> DenoiserLinearization:
    """One whose gains lie below 0, in [0, 1), and above 1."""
    axes = torch.linalg.qr(rand(M, D, D, seed=2))[0]
    gains = torch.tensor([-0.5, 0.3, 0.99, 40.0], dtype=torch.float64).expand(M, D)
    ratio = torch.full((M, 1), 0.4, dtype=torch.float64)
    shrinkage = axes @ torch.diag_embed(gains) @ axes.mT
    return DenoiserLinearization.at(flow().coordinates, ratio, rand(M, D, seed=3), rand(M, D, seed=4), shrinkage)


FRAMES = {
    "plain": IDENTITY,
    "spectral": EigenCoordinates.from_jacobian(rand(M, D, D)),
    "posterior": posterior(),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_frame_is_a_change_of_variables(local: LocalCoordinates) -> None:
    """ζ, its slope, its volume and its divergence, against autograd along a curve z(τ)."""
    tau = torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64)
    z, velocity, rates = rand(M, D, seed=5), rand(M, D, seed=6), rand(M, seed=7)

    def pulled(tau: Tensor, z: Tensor) -> Tensor:
        found = local.to_local(*(v.unsqueeze(1) for v in (tau, z, velocity, rates)))
        return found[0].squeeze(1)

    def volume(tau: Tensor) -> Tensor:
        return local.log_volume(tau)

    zeta, slope, q = (
        v.squeeze(1) for v in local.to_local(*(v.unsqueeze(1) for v in (tau, z, velocity, rates)))
    )
    torch.testing.assert_close(local.from_local(tau, zeta), z)
    along = (torch.ones_like(tau), velocity)
    torch.testing.assert_close(torch.func.jvp(pulled, (tau, z), along)[1], slope)
    for i in range(M):
        jacobian = torch.func.jacrev(lambda v, i=i: local.from_local(tau, v)[i])(zeta)[:, i]
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], local.log_volume(tau)[i])
    _, swelling = torch.func.jvp(volume, (tau,), (torch.ones_like(tau),))
    torch.testing.assert_close(q, rates - swelling)


def test_what_a_posterior_leaves_of_the_jacobian_is_told_beside_it() -> None:
    """At the point itself the slope in the frame is still, and its Jacobian diagonal: values."""
    score, own = bell(VPSDE()), flow()
    own.score = score
    tau, z = torch.full((M,), 0.7, dtype=torch.float64), rand(M, D, seed=8)
    rng = CounterRNG.draw(M, seeded(0))
    local = own.evaluate(tau, z, slice(None), ExactTrace(), rng, local_coordinates=True).local

    def slope(zeta: Tensor) -> Tensor:
        there = local.from_local(tau, zeta)
        velocity = own.evaluate(tau, there, slice(None)).velocity
        told = local.to_local(*(v.unsqueeze(1) for v in (tau, there, velocity, tau)))
        return told[1].squeeze(1)

    zeta = local.to_local(*(v.unsqueeze(1) for v in (tau, z, z, tau)))[0].squeeze(1)
    assert slope(zeta).abs().max() < 1e-9
    for i in range(M):
        jacobian = torch.func.jacrev(lambda v, i=i: slope(v)[i])(zeta)[:, i]
        torch.testing.assert_close(jacobian, torch.diag(local.values[i]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_gaussians_cost_next_to_nothing_though_their_moments_are_unknown(sde: GaussianSDE) -> None:
    score = bell(sde)
    x = score.sample(8, sde.t_min, seeded(1), dtype=torch.float64)
    alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
    covariance = alpha**2 * score.covariances[0] + sigma**2 * torch.eye(D)
    terminal = MultivariateNormal(alpha * score.means[0], covariance)
    result = log_likelihood(score, x, prior=terminal)
    assert (result.log_prob - score.log_prob(x, sde.t_min)).abs().max() < 1e-5
    assert result.evaluations.max() < 20


def test_slopes_move_with_the_state_where_the_jacobian_is_known() -> None:
    """v(z) + J (to − z) against the flow itself, to second order; plain frames stay in place."""
    means, stds = 0.5 * rand(2, D), torch.tensor([0.3, 0.6], dtype=torch.float64)
    covariances = stds[:, None, None] ** 2 * torch.eye(D, dtype=torch.float64)
    path = GaussianProbabilityFlow(
        GaussianMixture(torch.ones(2), means, covariances, VPSDE()), (D,)
    )
    tau = torch.tensor([0.2, 0.7, 1.3], dtype=torch.float64)
    z, change = rand(M, D, seed=8), rand(M, D, seed=9)
    rng = CounterRNG.draw(M, seeded(0))
    here = path.evaluate(tau, z, slice(None), ExactTrace(), rng, local_coordinates=True)
    misses = []
    for size in (1e-3, 1e-4):
        place, told = here.local.relocate(tau, z, here.velocity, z + size * change)
        truth = path.evaluate(tau, place, slice(None)).velocity
        assert torch.equal(place, z + size * change)
        misses.append(float((told - truth).abs().max()))
        assert misses[-1] < 0.05 * float((truth - here.velocity).abs().max())
    assert 80 < misses[0] / misses[1] < 120
    assert torch.equal(IDENTITY.relocate(tau, z, here.velocity, z + change)[0], z)


def test_slopes_of_a_linear_flow_move_by_its_matrix() -> None:
    jacobian = rand(M, D, D)
    jacobian = 0.5 * (jacobian + jacobian.mT)
    z, to, tau = rand(M, D, seed=8), rand(M, D, seed=9), torch.zeros(M, dtype=torch.float64)
    slope, wanted = (torch.einsum("mij,mj->mi", jacobian, point) for point in (z, to))
    place, told = EigenCoordinates.from_jacobian(jacobian).relocate(tau, z, slope, to)
    assert torch.equal(place, to)
    torch.testing.assert_close(told, wanted)
