"""The function ``sample``: its arguments, its result and its errors."""

import pytest
import torch
from naming import named
from torch.distributions import Independent, Laplace

from scoresde import MLP, SDE, VESDE, VPSDE, FunctionScore, GaussianMixture, ScoreModel
from scoresde.samplers import (
    MALA,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    SamplingError,
    TorchSDE,
    iterate,
    sample,
)


class OrnsteinUhlenbeck(SDE):
    """dx = −x dt + √2 dw with a Laplace prior; N(0, 1) is stationary."""

    def drift(self, x, t):
        return -x

    def diffusion(self, t):
        return torch.full_like(torch.as_tensor(t, dtype=torch.float64), 2.0).sqrt()

    def prior(self, event_shape, *, dtype=None, device=None):
        zeros = torch.zeros(event_shape, dtype=dtype, device=device)
        return Independent(Laplace(zeros, zeros + 0.5**0.5), len(event_shape))


def stationary(sde):
    return FunctionScore(lambda x, t: -x, sde)


def network(classes=None):
    torch.manual_seed(0)
    return ScoreModel(MLP((2,), width=16, depth=1, classes=classes), VPSDE())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


SCORE = stationary(VPSDE())


def test_the_dtype_is_that_of_the_network_or_the_start():
    model = network()
    assert sample(model, (3, 2), Ancestral(), steps=2).dtype == torch.float32
    assert sample(model.double(), (3, 2), Ancestral(), steps=2).dtype == torch.float64
    start = torch.randn(3, 2)
    assert sample(model, None, Ancestral(), steps=2, start=start).dtype == torch.float32
    exact = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0), VPSDE())
    assert sample(exact, (3, 2), Ancestral(), steps=2).dtype == torch.float32


def test_half_precision_states_are_computed_in_single_precision():
    start = torch.randn(64, 2, generator=generator()).bfloat16()
    for sampler in (Ancestral(), EulerMaruyama()):
        short, long = (
            sample(SCORE, None, sampler, steps=100, start=x, generator=generator(1))
            for x in (start, start.float())
        )
        assert short.dtype == torch.bfloat16
        assert torch.equal(short, long.bfloat16())


def test_samples_are_on_the_device_of_the_model(device):
    model = network().to(device)
    x, y = (sample(model, (3, 2), Ancestral(), steps=2, generator=generator()) for _ in range(2))
    assert x.device.type == device.type
    assert torch.equal(x, y)


def test_the_training_mode_is_restored():
    model = network().train()
    model.network.output.eval()
    seen = []
    model.network.register_forward_hook(lambda module, *_: seen.append(module.training))
    sample(model, (2, 2), Ancestral(), steps=2)
    assert seen
    assert not any(seen)
    assert model.network.training
    assert not model.network.output.training


def test_denoising_is_the_last_step_and_optional():
    last = sample(SCORE, (4, 2), Ancestral(), steps=3, denoise=False, generator=generator())
    denoised = sample(SCORE, (4, 2), Ancestral(), steps=3, generator=generator())
    torch.testing.assert_close(SCORE.denoised(last, SCORE.sde.t_min), denoised)
    assert not torch.equal(last, denoised)


def test_the_callback_is_called_at_the_start_and_after_each_step():
    calls = []
    x = sample(
        SCORE, (2, 3), Ancestral(), steps=4, denoise=False, callback=calls.append,
        generator=generator(),
    )  # fmt: skip
    assert [(call.step, call.steps) for call in calls] == [(k, 4) for k in range(5)]
    times = Ancestral().times(SCORE.sde, 4)
    assert [float(call.t) for call in calls] == times.tolist()
    assert torch.equal(calls[-1].x, x)
    assert torch.equal(calls[2].denoised, SCORE.denoised(calls[2].x, times[2]))


def test_the_progress_bar_counts_steps(capsys):
    sample(SCORE, (2, 3), Ancestral(), steps=4, progress=True)
    assert "4/4" in capsys.readouterr().err
    sample(SCORE, (2, 3), Ancestral(), steps=4)
    assert not capsys.readouterr().err


def test_given_times_are_the_grid():
    times = Ancestral().times(SCORE.sde, 3)
    for own in (times, times.tolist(), times.float()):
        calls = []
        x = sample(
            SCORE, (2, 3), Ancestral(), times=own, callback=calls.append, generator=generator()
        )
        torch.testing.assert_close(
            x, sample(SCORE, (2, 3), Ancestral(), steps=3, generator=generator())
        )
        assert len(calls) == 4


def test_times_may_end_at_zero_and_start_anywhere():
    for sampler in (Ancestral(), EulerMaruyama(), ReverseDiffusion()):
        x = sample(SCORE, (2, 3), sampler, times=[0.5, 0.2, 0.0], start=torch.ones(2, 3))
        assert bool(x.isfinite().all())


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [(Ancestral(), 3), (AdaptiveSDE(0.5), 1), (ProbabilityFlow(), 1)],
    ids=repr,
)
def test_a_condition_is_selected_with_its_rows(sampler, steps):
    """In one batch, in chunks, and one by one if the sampler is deterministic."""
    torch.manual_seed(1)
    model = network(classes=5).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = model.given(classes=torch.arange(5))
    start = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    one, two = (model.select(slice(i, i + 1)).denoised(start[:1], 0.5) for i in (0, 1))
    assert not torch.allclose(one, two)
    whole, chunks = (
        sample(model, None, sampler, start=start, steps=steps, generator=generator(), batch_size=b)
        for b in (None, 2)
    )
    torch.testing.assert_close(whole, chunks, rtol=1e-4, atol=1e-4)
    if sampler.deterministic:
        alone = [
            sample(
                model.select(slice(i, i + 1)), None, sampler, start=start[i : i + 1], steps=steps
            )
            for i in range(5)
        ]
        torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_iterate_and_not_through_sample():
    start = torch.ones(2, 3, requires_grad=True)
    times = Ancestral().times(SCORE.sde, 3)
    *_, (x, _) = iterate(SCORE, start, times, Ancestral(), torch.zeros_like)
    (gradient,) = torch.autograd.grad(x.sum(), start)
    assert bool((gradient != 0).all())
    assert not sample(SCORE, None, Ancestral(), steps=2, start=start).requires_grad


@pytest.mark.parametrize("sampler", [EulerMaruyama(), TorchSDE()], ids=repr)
def test_any_sde_can_be_sampled(sampler):
    """From its own prior, here Laplace, a general SDE relaxes to its stationary distribution."""
    sde = OrnsteinUhlenbeck(T=3.0)
    x = sample(stationary(sde), (4000, 1), sampler, steps=100, generator=generator())
    assert x.shape == (4000, 1)
    assert float(x.mean()) == pytest.approx(0.0, abs=4 / 4000**0.5)
    assert float(x.var()) == pytest.approx(1.0, abs=4 * (2 / 4000) ** 0.5 + 0.03)
    kurtosis = float(x.pow(4).mean() / x.var() ** 2)
    assert kurtosis == pytest.approx(3.0, abs=5 * (96 / 4000) ** 0.5)  # 6 for Laplace


def test_a_prior_of_another_kind_uses_the_generator_too():
    score = stationary(OrnsteinUhlenbeck())
    draws = [
        sample(score, (2000, 1), EulerMaruyama(eta=0.0), times=[1.0, 0.999], generator=generator(k))
        for k in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "sampler",
    [Ancestral(), ReverseDiffusion(), Langevin(), AnnealedLangevin(),
     PredictorCorrector(EulerMaruyama(), Langevin())],
    ids=repr,
)  # fmt: skip
def test_samplers_for_gaussian_diffusions_refuse_a_general_sde(sampler):
    with pytest.raises(TypeError, match="general SDE"):
        sample(stationary(OrnsteinUhlenbeck()), (2, 3), sampler, steps=2)


def test_a_general_sde_has_no_denoiser():
    with pytest.raises(TypeError, match="a general SDE has a score, but no denoiser"):
        sample(stationary(OrnsteinUhlenbeck()), (2, 3), EulerMaruyama(), steps=2, denoise=True)


def test_a_nan_is_reported_with_its_step_and_all_samples():
    def score(x, t):
        return torch.where((x[:, :1] > 0) & (t < 0.5), torch.nan, -x)

    start = torch.tensor([[1.0, 1.0], [-9.0, 1.0], [-9.0, 2.0]])
    with pytest.raises(SamplingError, match=r"1 of 3 are not finite, from step 4 of 5") as error:
        sample(FunctionScore(score, VPSDE()), None, EulerMaruyama(eta=0.0), start=start, steps=5)
    assert error.value.finite.tolist() == [False, True, True]
    assert bool(error.value.samples[1:].isfinite().all())
    assert "(t = 0.400006 to 0.200008)" in str(error.value)


def test_a_nan_of_the_last_evaluation_is_reported_with_its_time():
    score = FunctionScore(lambda x, t: torch.where(t < 0.3, torch.nan, -x), VPSDE())
    with pytest.raises(
        SamplingError, match=r"2 of 2 are not finite, in the denoised x̂ at t = 0.2;"
    ):
        sample(score, (2, 2), EulerMaruyama(), times=[1.0, 0.5, 0.2])


def test_which_samplers_are_correctors():
    assert all(m.corrects for m in (Langevin(), AnnealedLangevin(), MALA()))
    assert not any(m.corrects for m in (Ancestral(), ProbabilityFlow(), TorchSDE()))


class Nameless(SDE):
    def drift(self, x, t):
        return -x

    def diffusion(self, t):
        return torch.ones_like(t)


BAD = [
    ({"score": lambda x, t: -x}, TypeError, r"score: expected a Score.*FunctionScore"),
    ({"sampler": Ancestral}, TypeError, r"sampler: expected a Sampler such as"),
    ({"sampler": "ancestral"}, TypeError, r"sampler: expected a Sampler such as"),
    ({"shape": None}, TypeError, r"shape: expected \(n, \*event\)"),
    ({"shape": 16}, TypeError, r"shape: expected \(n, \*event\)"),
    ({"shape": ()}, TypeError, r"shape: expected \(n, \*event\)"),
    ({"shape": (0, 2)}, ValueError, r"shape\[0\]: expected an integer, at least 1"),
    ({"shape": (2.0, 2)}, TypeError, r"shape\[0\]: expected an integer"),
    ({"steps": 0}, ValueError, r"steps: expected an integer, at least 1"),
    ({"steps": 2.5}, TypeError, r"steps: expected an integer"),
    ({"steps": 2, "times": [1.0, 0.5]}, ValueError, r"steps, times: expected one of them"),
    (
        {"times": [0.1, 0.5]},
        ValueError,
        r"times: expected strictly decreasing times, got 0.1 before",
    ),
    ({"times": "karras"}, TypeError, r"times: expected times or a Grid.*not a name"),
    ({"times": [0.5, 0.5]}, ValueError, r"times: expected strictly decreasing times"),
    ({"times": [0.5]}, ValueError, r"times: expected shape \(N\+1,\)"),
    ({"times": [[0.5, 0.1]]}, ValueError, r"times: expected shape \(N\+1,\)"),
    ({"times": [2.0, 0.1]}, ValueError, r"times: expected times in \[0, 1\]"),
    ({"times": [1.0, float("nan")]}, ValueError, r"times: expected finite times"),
    ({"times": [10, 0]}, TypeError, r"times: expected a floating-point time"),
    ({"start": torch.ones(2, 3)}, ValueError, r"shape, start: expected the same shape"),
    ({"start": torch.ones(4, 2) * float("nan")}, ValueError, r"start: expected finite values"),
    ({"start": torch.ones(4, 2).long()}, TypeError, r"start: expected a floating-point tensor"),
    ({"start": torch.ones(0, 2), "shape": None}, ValueError, r"start: expected at least one"),
    ({"batch_size": 0}, ValueError, r"batch_size: expected an integer, at least 1"),
    ({"score": stationary(Nameless()), "sampler": EulerMaruyama()}, NotImplementedError, "start="),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda v: named(v)[:60])
def test_bad_input_of_sample(change, error, message):
    arguments = {"score": SCORE, "shape": (4, 2), "sampler": Ancestral()} | change
    with pytest.raises(error, match=message):
        sample(**arguments)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EulerMaruyama(eta=-1.0), ValueError, "eta: expected a nonnegative"),
        (lambda: Ancestral(variance=2.0), ValueError, r"variance: expected a number in \[0, 1\]"),
        (lambda: Langevin(snr=0.0), ValueError, "snr: expected a positive"),
        (lambda: Langevin(shrinkage=-1), ValueError, "shrinkage: expected a nonnegative"),
        (lambda: AnnealedLangevin(snr="big"), TypeError, "snr: expected a positive"),
        (lambda: TorchSDE("dopri5"), ValueError, "method: expected one of euler, milstein, srk"),
        (lambda: TorchSDE(eta=-1), ValueError, "eta: expected a nonnegative"),
        (
            lambda: PredictorCorrector(EulerMaruyama(), None),
            TypeError,
            "corrector: expected a Sampl",
        ),
        (
            lambda: PredictorCorrector(EulerMaruyama(), Langevin(), corrections=-1),
            ValueError,
            "corrections: expected an integer, at least 0",
        ),
        (lambda: Ancestral().times(VESDE(), 0), ValueError, "steps: expected an integer"),
    ],
)
def test_bad_input_of_members(make, error, message):
    with pytest.raises(error, match=message):
        make()
