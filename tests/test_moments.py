"""The Gaussian approximation of the data: estimates, whitening, density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from scoresde import Moments

EVENTS = [(), (5,), (1, 8, 8), (3, 4, 4, 4)]


def data(n: int, event: tuple[int, ...]) -> torch.Tensor:
    d = math.prod(event)
    mix = torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, dtype=torch.float64)
    return (torch.randn(n, d, dtype=torch.float64) @ mix + 2.0).reshape(n, *event)


def covariance(moments: Moments, d: int) -> torch.Tensor:
    variance = moments.variance.expand(d)
    if moments.basis is None:
        return torch.diag(variance)
    return moments.basis @ torch.diag(variance) @ moments.basis.T


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_estimates_against_numpy(event):
    x, d = data(300, event), math.prod(event)
    moments = Moments.of(x)
    assert moments.known
    assert moments.mean.shape == event
    flat = x.reshape(300, d).numpy()
    np.testing.assert_allclose(moments.mean.reshape(-1), flat.mean(0), rtol=1e-12)
    expected = np.cov(flat.T).reshape(d, d)
    np.testing.assert_allclose(covariance(moments, d), expected, rtol=1e-9, atol=1e-10)


def test_large_events_have_variances_alone():
    x = torch.randn(50, 1025) * torch.linspace(0.1, 2.0, 1025)
    moments = Moments.of(x)
    assert moments.basis is None
    np.testing.assert_allclose(moments.variance, x.double().var(0), rtol=1e-10)


def test_more_coordinates_than_samples():
    """A singular covariance: no variance comes out negative."""
    moments = Moments.of(data(5, (20,)))
    assert (moments.variance >= 0).all()
    assert int((moments.variance > 1e-10).sum()) == 4


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("kind", ["unknown", "diagonal", "full"])
@pytest.mark.parametrize("each", [False, True], ids=["shared t", "own t"])
def test_whitening_and_density(event, kind, each):
    """Against torch's multivariate normal; ``unwhiten`` inverts ``whiten``."""
    d, n = math.prod(event), 4
    moments = {
        "unknown": Moments(),
        "diagonal": Moments(torch.randn(event), torch.rand(d) + 0.1, known=True),
        "full": Moments.of(data(2 * d + 3, event)),
    }[kind]
    alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in (0.8, 0.3))
    if each:
        alpha = torch.tensor([0.1, 0.5, 0.9, 1.2], dtype=torch.float64)
        sigma = sigma.expand(n)
    x = torch.randn(n, *event, dtype=torch.float64)
    z = moments.whiten(x, alpha, sigma)
    assert z.shape == (n, d)
    torch.testing.assert_close(moments.unwhiten(z, alpha, sigma, event), x)
    eye = torch.eye(d, dtype=torch.float64)
    for row in range(n):
        a, s = (v[row] if each else v for v in (alpha, sigma))
        normal = MultivariateNormal(
            a * moments.mean.reshape(-1).expand(d), a**2 * covariance(moments, d) + s**2 * eye
        )
        one = moments.log_prob(x[row : row + 1], a, s)
        torch.testing.assert_close(one[0], normal.log_prob(x[row].reshape(d)))
        torch.testing.assert_close(moments.log_prob(x, alpha, sigma)[row], one[0])
    logs = torch.atleast_1d(moments.log_det(alpha, sigma, d))
    volume = 0.5 * torch.logdet(alpha.flatten()[0] ** 2 * covariance(moments, d) + 0.09 * eye)
    torch.testing.assert_close(logs[0], volume)


def test_whitened_data_are_standard():
    x = data(4000, (6,))
    moments = Moments.of(x)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    z = moments.whiten(x, one, zero)
    np.testing.assert_allclose(np.cov(z.T.numpy()), np.eye(6), atol=1e-9)
    np.testing.assert_allclose(z.mean(0), np.zeros(6), atol=1e-12)


def test_float32_states_meet_float64_moments():
    x = data(100, (6,))
    moments = Moments.of(x).half()
    alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in (0.8, 0.3))
    assert moments.mean.dtype == moments.variance.dtype == moments.basis.dtype == torch.float64
    exact = moments.log_prob(x, alpha, sigma)
    torch.testing.assert_close(moments.log_prob(x.float(), alpha, sigma), exact, rtol=1e-5, atol=0)
    assert moments.whiten(x.float(), alpha, sigma).dtype == torch.float64


def test_buffers_move(device):
    moments = Moments.of(torch.randn(50, 3)).to(device)
    x = torch.randn(2, 3, device=device)
    alpha = torch.ones((), dtype=torch.float64, device=device)
    assert moments.log_prob(x, alpha, alpha).device.type == device.type


def test_the_default_is_not_known():
    assert not Moments().known
    assert "known=False" in repr(Moments())
    assert "full covariance of shape (3,)" in repr(Moments.of(torch.randn(9, 3)))
