"""The training loop: what it learns, stopping and resuming, and what it refuses."""

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from helpers import generator, mixture
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from scoresde import MLP, NOISE, VPSDE, FunctionScore, Moments, ScoreModel, edm
from scoresde.training import fit
from scoresde.training.data import batch_indices
from scoresde.training.losses import (
    EDMWeighting,
    LikelihoodWeighting,
    LogNormal,
    TableTimes,
    Uniform,
    dsm_loss,
)


def samples(n=64, shape=(2,), dtype=torch.float32):
    return torch.randn(n, *shape, generator=generator(1), dtype=dtype) * 0.5 + 1.0


def labels(n=64):
    return torch.arange(n) % 3


def model(classes=None, dropout=0.0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = MLP((2,), width=8, depth=1, classes=classes, dropout=dropout)
    return ScoreModel(network, VPSDE(), **options)


def train(score, data=None, **options):
    settings = {"steps": 12, "batch_size": 16, "progress": False} | options
    return fit(score, samples() if data is None else data, **settings)


def weights(score):
    return torch.cat([p.detach().reshape(-1) for p in score.parameters()])


def same(a, b):
    return torch.equal(weights(a.score), weights(b.score)) and torch.equal(
        weights(a.raw), weights(b.raw)
    )


class Affine(torch.nn.Module):
    """ε̂ = gain x + bias for any event shape; calls ``act`` on the output of one training call."""

    def __init__(self, at=None, act=None):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.0))
        self.bias = torch.nn.Parameter(torch.tensor(0.0))
        self.at, self.act = at, act
        self.seen, self.given = [], []

    def forward(self, x, label, classes=None):
        out = self.gain * x + self.bias
        if self.training:
            self.seen.append((self.gain.item(), self.bias.item()))
            self.given.append(classes)
            if len(self.seen) == self.at:
                return self.act(out)
        return out


def affine(at=None, act=None):
    return ScoreModel(Affine(at, act), VPSDE())


# --- it learns


@pytest.mark.parametrize("shape", [(), (5,), (1, 4, 4), (2, 2, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_finds_the_least_squares_solution(shape, dtype, device):
    """At one time t and for data N(m, c) the best affine ε̂ is σ (x − α m)/(α² c + σ²).

    The tolerance is about 10 standard errors of the average over the last 500 steps.
    """
    score = affine().to(device, dtype)
    x = samples(2000, shape, dtype).to(device)
    times = TableTimes(torch.tensor([0.4]))
    train(score, x, steps=400, batch_size=512, lr=0.02, time_sampler=times, ema=0.99)
    result = train(score, x, steps=500, batch_size=512, lr=0.002, time_sampler=times, ema=0.99)
    mean, variance = float(x.mean()), float(x.var())
    alpha, sigma = float(score.sde.alpha(0.4)), float(score.sde.sigma(0.4))
    gain = sigma / (alpha**2 * variance + sigma**2)
    assert result.score.network.gain.item() == pytest.approx(gain, abs=0.03)
    assert result.score.network.bias.item() == pytest.approx(-gain * alpha * mean, abs=0.03)


def test_it_approaches_the_exact_score_of_a_mixture():
    """Within 3 % of the irreducible loss, both on the same draws; the untrained excess is 500 %."""
    variances = [[0.02, 0.1], [0.05, 0.02]]
    exact = mixture(VPSDE(), [[-1.0, 0.0], [1.0, 0.5]], variances, [0.4, 0.6])
    x, fresh = (
        exact.sample(4000, generator=generator(1)),
        exact.sample(4000, generator=generator(2)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        score = ScoreModel(MLP((2,), width=64, depth=2), exact.sde)
    options = {"steps": 800, "lr": 3e-3, "cosine": True, "ema": 0.99, "held_out": fresh}
    result = train(score, x, batch_size=256, **options)
    least, ours = (
        dsm_loss(s, fresh, generator=generator(3)).item() for s in (exact, result.score.double())
    )
    assert ours < 1.03 * least
    assert result.history.held_out[-1][1] == pytest.approx(least, rel=0.06)
    assert len(result.history.held_out) == 10
    assert result.history.train[0][1] > 2 * result.history.train[-1][1]


@pytest.mark.parametrize(
    ("prediction", "weighting", "time_sampler"),
    [
        (edm(0.5), EDMWeighting(0.5), LogNormal()),
        (NOISE, LikelihoodWeighting(), LogNormal()),
        (NOISE, lambda sde, t: t, TableTimes(torch.tensor([0.1, 0.9]))),
    ],
)
def test_any_prediction_weighting_and_time_sampler(prediction, weighting, time_sampler):
    result = train(model(prediction=prediction), weighting=weighting, time_sampler=time_sampler)
    assert bool(weights(result.score).isfinite().all())
    assert not torch.equal(weights(result.score), weights(model()))


def test_any_score_with_parameters_can_be_trained():
    network = torch.nn.Linear(2, 2)
    score = FunctionScore(lambda x, t: network(x), VPSDE(), NOISE)
    score.network = network
    before = network.weight.detach().clone()
    train(score)
    assert not torch.equal(before, network.weight)


# --- a step


@pytest.mark.parametrize(("steps", "ema"), [(2, 0.999), (12, 0.999), (12, 0.3)])
def test_the_average_is_that_of_song_et_al(steps, ema):
    """A transcription of their ExponentialMovingAverage on the weights that the network saw."""
    score = affine()
    result = train(score, steps=steps, lr=0.1, warmup=0, ema=ema)
    raw = (score.network.gain.item(), score.network.bias.item())
    trajectory = [*score.network.seen, raw]
    shadow = list(trajectory[0])
    for num_updates, now in enumerate(trajectory[1:], start=1):
        decay = min(ema, (1 + num_updates) / (10 + num_updates))
        shadow = [s - (1.0 - decay) * (s - p) for s, p in zip(shadow, now, strict=True)]
    ours = (result.score.network.gain.item(), result.score.network.bias.item())
    assert ours == pytest.approx(tuple(shadow), rel=1e-5)
    assert ours != pytest.approx(raw, rel=1e-3)


@pytest.mark.parametrize("cosine", [False, True])
def test_rate_and_gradient_at_every_step(cosine):
    rates, norms = [], []

    def record(optimizer, *_):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        norms.append(float(torch.stack([p.grad.norm() for p in group["params"]]).norm()))

    handle = register_optimizer_step_pre_hook(record)
    try:
        train(affine(), steps=20, lr=0.1, warmup=4, cosine=cosine, clip=0.01)
    finally:
        handle.remove()
    assert rates[:4] == pytest.approx(
        [
            0.1 * k / 5 * (0.5 * (1 + math.cos(math.pi * (k - 1) / 20)) if cosine else 1)
            for k in range(1, 5)
        ]
    )
    assert rates[-1] == pytest.approx(
        0.1 * 0.5 * (1 + math.cos(math.pi * 19 / 20)) if cosine else 0.1
    )
    assert norms == pytest.approx([0.01] * 20, rel=1e-3)


def test_nothing_is_clipped_without_a_bound():
    assert not same(train(affine(), clip=0.01, lr=0.1), train(affine(), clip=math.inf, lr=0.1))


def test_weight_decay_shrinks_what_the_data_do_not_need():
    free, shrunk = (
        train(model(), steps=60, lr=0.01, weight_decay=decay).raw for decay in (0.0, 1.0)
    )
    assert float(weights(shrunk).norm()) < float(weights(free).norm())


def test_moments_of_the_data_are_recorded(tmp_path):
    x = samples(shape=(2,))
    result = train(model(), x)
    expected = Moments.of(x)
    for score in (result.raw, result.score):
        assert score.moments.known
        for name in ("mean", "variance", "basis"):
            assert torch.equal(getattr(score.moments, name), getattr(expected, name))
    result.score.save(tmp_path / "model.safetensors")
    loaded = ScoreModel.load(tmp_path / "model.safetensors")
    assert loaded.moments.known
    assert torch.equal(loaded(x, 0.5), result.score(x, 0.5))


def test_the_result_reports_steps_losses_and_time():
    result = train(model(), steps=120, held_out=samples(20), evaluate_every=50)
    assert result.steps == 120
    assert [step for step, _ in result.history.train] == [50, 100, 120]
    assert [step for step, _ in result.history.held_out] == [50, 100, 120]
    assert result.seconds > 0
    assert repr(result).startswith("FitResult(120 steps in ")
    assert "held-out loss" in repr(result)
    assert not result.score.training
    assert not result.raw.training


def test_a_progress_bar_is_shown_or_not(capfd):
    train(model())
    assert capfd.readouterr().err == ""
    train(model(), progress=True)
    assert "12/12" in (shown := capfd.readouterr().err)
    assert "loss" in shown


def test_mixed_precision():
    precise, mixed = train(model(), steps=20), train(model(), steps=20, amp=torch.bfloat16)
    assert weights(mixed.score).dtype == torch.float32
    assert not same(precise, mixed)
    torch.testing.assert_close(weights(mixed.score), weights(precise.score), atol=0.02, rtol=0.0)


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_compiled_network():
    score = model()
    score.network.compile(backend="eager")
    assert same(train(score), train(model()))


# --- random numbers


def test_a_seed_determines_the_weights_and_the_global_state_is_unchanged():
    before = torch.random.get_rng_state()
    first = train(model(dropout=0.5), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(77)
    assert same(first, train(model(dropout=0.5), seed=3))
    assert not same(first, train(model(dropout=0.5), seed=4))


def test_a_generator_is_used_to_draw_the_seed(tmp_path):
    numbers, before = generator(3), torch.random.get_rng_state()
    first, second = (train(model(), generator=numbers) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(first, train(model(), generator=generator(3)))
    assert not same(first, second)
    file = tmp_path / "run"
    train(model(), generator=generator(3), checkpoint=file, steps=5)
    assert same(first, train(model(), generator=generator(3), checkpoint=file))
    with pytest.raises(ValueError, match=r"checkpoint: .*seed="):
        train(model(), generator=generator(4), checkpoint=file, steps=20)


def test_dropout_differs_from_step_to_step():
    masks = []
    score = affine(at=1, act=lambda out: out)
    score.network.forward = lambda x, label: (
        masks.append(torch.nn.functional.dropout(torch.ones(16), 0.5)) or (score.network.gain * x)
    )
    train(score, steps=5)
    assert len({tuple(mask.tolist()) for mask in masks}) == 5


def test_dropout_is_independent_of_the_times():
    """With the same bits for both, a sample's time would determine its dropout mask."""
    pairs = []
    score = affine()
    score.network.forward = lambda x, label: (
        pairs.append((label, torch.rand(len(label), dtype=torch.float64))) or score.network.gain * x
    )
    train(score, steps=4, time_sampler=Uniform())
    for times, other in pairs:
        assert not torch.isclose(times.double(), other, rtol=1e-3).all()


@given(n=st.integers(1, 20), size=st.integers(1, 25), start=st.integers(0, 30), seed=st.integers(0))
def test_batches_are_cut_from_successive_permutations(n, size, start, seed):
    full = batch_indices(n, size, seed, 0)
    row = torch.cat([next(full) for _ in range(start + 3)])
    for done in range(0, len(row) - n + 1, n):
        assert sorted(row[done : done + n].tolist()) == list(range(n))
    late = batch_indices(n, size, seed, start)
    assert torch.equal(torch.cat([next(late) for _ in range(3)]), row[start * size :])


def test_held_out_data_are_evaluated_on_the_same_draws_and_do_not_change_the_weights():
    alone = train(model(), steps=30)
    result = train(model(), steps=30, held_out=samples(40), evaluate_every=7)
    assert same(alone, result)
    still = train(model(), steps=30, lr=1e-12, held_out=samples(40), evaluate_every=7)
    losses = [loss for _, loss in still.history.held_out]
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-6)


# --- data of every kind


class Items(Dataset):
    def __init__(self, *tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, i):
        item = tuple(t[i] for t in self.tensors)
        return item if len(item) > 1 else item[0]


class Endless(IterableDataset):
    def __iter__(self):
        numbers = generator()
        while True:
            yield torch.randn(2, generator=numbers)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: (x, y),
        lambda x, y: TensorDataset(x),
        lambda x, y: TensorDataset(x, y),
        lambda x, y: Items(x),
        lambda x, y: Items(x, y),
    ],
)
def test_the_same_data_in_another_form_give_the_same_weights(wrap):
    x, y = samples(), labels()
    assert same(train(model(), x), train(model(), wrap(x, y), held_out=wrap(x, y)))


@pytest.mark.parametrize("held", [False, True])
def test_loaders_and_streams(held):
    loader = DataLoader(samples(), batch_size=10, shuffle=True, generator=generator())
    result = train(model(), loader, steps=20, held_out=loader if held else None)
    assert result.score.moments.known
    torch.testing.assert_close(result.score.moments.mean, samples().double().mean(0))
    stream = train(model(), Endless(), steps=5)
    torch.testing.assert_close(
        stream.score.moments.variance, torch.ones(2).double(), atol=0.1, rtol=0
    )


def test_every_sample_of_a_loader_is_used_in_turn():
    seen = []
    loader = DataLoader(samples(24), batch_size=8)
    score = affine()
    score.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    train(score, loader, steps=7)
    assert seen == [8] * 7


# --- labels


def test_labels_reach_the_network_and_are_dropped_with_the_given_probability():
    """1280 labels: the bound is 5 standard deviations, false alarms one in 10⁶."""
    score = affine()
    train(score, (samples(), labels()), steps=80, condition="classes")
    given = torch.cat(score.network.given)
    assert set(given.tolist()) == {0, 1, 2}

    score = affine()
    held = (samples(), labels())
    options = {"condition": "classes", "condition_dropout": 0.25, "null": 3, "held_out": held}
    train(score, (samples(), labels()), steps=80, **options)
    dropped = float((torch.cat(score.network.given) == 3).double().mean())
    assert abs(dropped - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 1280)


def test_the_null_class_of_this_library_s_networks_is_the_default():
    result = train(
        model(classes=3), (samples(), labels()), condition="classes", condition_dropout=0.5
    )
    assert result.score.given(classes=3)(samples(4), 0.5).shape == (4, 2)


def test_vector_conditions_are_dropped_by_row():
    class WithVector(Affine):
        def forward(self, x, label, y):
            self.given.append(y)
            return self.gain * x + self.bias

    score = ScoreModel(WithVector(), VPSDE())
    y = torch.rand(64, 3, generator=generator()) + 1
    options = {"condition": "y", "condition_dropout": 0.5, "null": 0.0}
    train(score, (samples(), y), steps=10, **options)
    zero = torch.cat(score.network.given) == 0
    assert bool((zero.all(1) == zero.any(1)).all())
    assert 0 < int(zero.all(1).sum()) < 160


# --- stopped and resumed


class KilledError(Exception):
    pass


def die(_):
    raise KilledError


@pytest.fixture(autouse=True)
def interruptible():
    """Let Ctrl-C interrupt, also where a shell in the background has it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def press_ctrl_c(out):
    signal.raise_signal(signal.SIGINT)
    return out


OPTIONS = {
    "steps": 17,
    "lr": 0.02,
    "warmup": 3,
    "cosine": True,
    "condition": "classes",
    "condition_dropout": 0.3,
    "checkpoint_every": 5,
    "evaluate_every": 4,
}


def stop_after(score, calls, act):
    """Apply ``act`` to the network's output in one training call."""
    seen = []

    def hook(module, args, out):
        seen.append(module.training)
        return act(out) if sum(seen) == calls and module.training else out

    score.network.register_forward_hook(hook)
    return score


@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), Items])
@pytest.mark.parametrize("act", [die, press_ctrl_c])
def test_a_stopped_run_is_resumed_to_the_same_bits(tmp_path, act, wrap):
    x, y, held = samples(), labels(), (samples(20), labels(20))
    options = {**OPTIONS, "held_out": held}
    uninterrupted = train(model(3, 0.2), wrap(x, y), **options, checkpoint=tmp_path / "whole")
    file = tmp_path / "run"
    stopped = stop_after(model(3, 0.2), 13, act)
    with pytest.raises((KilledError, KeyboardInterrupt)):
        train(stopped, wrap(x, y), **options, checkpoint=file)
    assert not stopped.training
    assert torch.load(file, weights_only=True)["step"] == (10 if act is die else 13)
    steps = []
    resumed = model(3, 0.2)
    resumed.network.register_forward_pre_hook(lambda m, a: steps.append(m.training))
    result = train(resumed, wrap(x, y), **options, checkpoint=file)
    assert sum(steps) == (7 if act is die else 4)
    assert same(uninterrupted, result)
    assert uninterrupted.history.held_out == result.history.held_out
    if act is die:
        assert uninterrupted.history == result.history
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "whole"]


def test_a_finished_run_is_loaded_not_repeated(tmp_path):
    first = train(model(), checkpoint=tmp_path / "run")
    score = affine(1, die)
    again = train(stop_after(model(), 1, die), checkpoint=tmp_path / "run")
    assert same(first, again)
    assert again.steps == 12
    assert again.history == first.history
    longer = train(model(), checkpoint=tmp_path / "run", steps=20)
    assert same(longer, train(model(), steps=20))
    with pytest.raises(KilledError):
        train(score, checkpoint=tmp_path / "run", resume=False)


def test_ctrl_c_without_a_checkpoint_and_a_second_one_at_once():
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        train(affine(3, press_ctrl_c))
    with pytest.raises(KeyboardInterrupt) as caught:
        train(affine(3, lambda out: press_ctrl_c(press_ctrl_c(out))))
    assert "after step" not in str(caught.value)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_user_is_left_unchanged():
    pressed = []
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        result = train(affine(3, press_ctrl_c))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert pressed == [1]
    assert result.steps == 12


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "run"
    train(model(), checkpoint=file)
    before = file.read_bytes()

    def crash(state, path):
        Path(path).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        train(model(), checkpoint=file, steps=20)
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_process_killed_at_any_moment_is_resumed_to_the_same_bits(tmp_path):
    code = """
        import sys, torch
        from scoresde import MLP, VPSDE, ScoreModel
        from scoresde.training import fit
        torch.manual_seed(0)
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        model = ScoreModel(MLP((2,), width=8, depth=1), VPSDE())
        result = fit(model, x, steps=1500, batch_size=16, progress=False, checkpoint=sys.argv[1],
                     checkpoint_every=1)
        result.score.save(sys.argv[1] + ".safetensors")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    file = tmp_path / "run"
    for delay in (0.1, 0.25, 0.4):
        old = file.stat().st_mtime_ns if file.exists() else 0
        process = subprocess.Popen([*command, str(file)])
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not (file.exists() and file.stat().st_mtime_ns > old):
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
    subprocess.run([*command, str(file)], check=True)
    a, b = (ScoreModel.load(tmp_path / f"{name}.safetensors") for name in ("whole", "run"))
    assert torch.equal(weights(a), weights(b))


# --- refused


@pytest.mark.parametrize("size", [0, 1, 100, 1000, 3000])
def test_a_truncated_checkpoint_is_refused(tmp_path, size):
    file = tmp_path / "run"
    train(model(), checkpoint=file)
    assert size < file.stat().st_size
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"checkpoint: .*damaged"):
        train(model(), checkpoint=file)
    train(model(), checkpoint=file, resume=False)
    train(model(), checkpoint=file)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_foreign_files_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run"
    file.write_text("weights")
    with pytest.raises(ValueError, match=r"checkpoint: .*another kind"):
        train(model(), checkpoint=file)
    save_file({"a": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"checkpoint: .*another kind"):
        train(model(), checkpoint=file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match=r"checkpoint: .*another program"):
        train(model(), checkpoint=file)
    train(model(), checkpoint=file, resume=False)
    state = torch.load(file, weights_only=True) | {"version": 1}
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"checkpoint: .*version 1, written by another version"):
        train(model(), checkpoint=file)
    for write in (lambda: torch.save(Trap(), file), lambda: file.write_bytes(pickle.dumps(Trap()))):
        write()
        with pytest.raises(ValueError, match=r"checkpoint: .*another kind"):
            train(model(), checkpoint=file)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"lr=0\.001 \(now 0\.5\)"),
        ({"seed": 8}, "seed=0"),
        ({"time_sampler": LogNormal()}, "time_sampler=Stratified"),
        ({"cosine": True}, "decay_steps"),
    ],
)
def test_a_run_is_resumed_with_the_same_settings_only(tmp_path, change, message):
    train(model(), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=f"checkpoint: .*{message}"):
        train(model(), checkpoint=tmp_path / "run", steps=20, **change)


def test_functions_are_the_same_setting_in_another_process(tmp_path):
    def build():
        return lambda sde, t: 1 + t

    train(model(), weighting=build(), checkpoint=tmp_path / "run")
    train(model(), weighting=build(), checkpoint=tmp_path / "run", steps=14)


def test_the_checkpoint_of_another_network_is_refused(tmp_path):
    train(model(), checkpoint=tmp_path / "run")
    for other in (affine(), model(classes=2)):
        with pytest.raises(ValueError, match=r"checkpoint: .*does not fit"):
            train(other, checkpoint=tmp_path / "run", steps=20)


@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, name):
    def spoil(out):
        if name == "loss":
            return out * math.nan
        return out + torch.sqrt(0 * out.sum())  # the value is finite, its slope is not

    file = tmp_path / "run"
    score = affine(33, spoil)
    with pytest.raises(FloatingPointError, match=r"step 33; lower lr=.*after step 30"):
        train(score, steps=60, checkpoint=file, checkpoint_every=10)
    good = train(affine(), steps=60, checkpoint=file, checkpoint_every=10)
    assert same(good, train(affine(), steps=60))


def test_a_held_out_loss_that_is_not_finite_stops_the_run():
    class OnlyInTraining(Affine):
        def forward(self, x, label):
            return super().forward(x, label) + (0.0 if self.training else math.nan)

    score = ScoreModel(OnlyInTraining(), VPSDE())
    with pytest.raises(FloatingPointError, match="held-out loss nan at step 1; "):
        train(score, held_out=samples())
    with pytest.raises(FloatingPointError, match="checkpoint="):
        train(affine(2, lambda out: out * math.inf))


def frozen():
    score = model()
    score.requires_grad_(False)
    return score


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train(MLP((2,), width=8, depth=1)), TypeError, "score: .*ScoreModel"),
        (lambda: train(frozen()), ValueError, "score: expected parameters"),
        (lambda: train(model(), [1.0, 2.0]), TypeError, "data: expected a tensor"),
        (lambda: train(model(), samples().numpy()), TypeError, "data: .*as_tensor"),
        (lambda: train(model(), samples(0)), ValueError, "data: expected at least one"),
        (lambda: train(model(), samples().long()), TypeError, "data: .*float"),
        (lambda: train(model(), samples() * math.nan), ValueError, "data: expected finite"),
        (lambda: train(model(), Items(samples().long())), TypeError, "data: .*float"),
        (lambda: train(model(), (samples(), labels(5))), ValueError, "data: .*one label"),
        (lambda: train(model(), samples(1)), ValueError, "data: expected at least 2"),
        (
            lambda: train(model(), DataLoader(samples(4), batch_size=8, drop_last=True)),
            ValueError,
            "data: .*empty pass",
        ),
        (lambda: train(model(), held_out=samples().long()), TypeError, "held_out: .*float"),
        (lambda: train(model(), steps=0), ValueError, "steps"),
        (lambda: train(model(), steps=1.5), TypeError, "steps"),
        (lambda: train(model(), batch_size=0), ValueError, "batch_size"),
        (lambda: train(model(), lr=-1e-3), ValueError, "lr"),
        (lambda: train(model(), weight_decay=-1.0), ValueError, "weight_decay"),
        (lambda: train(model(), warmup=-1), ValueError, "warmup"),
        (lambda: train(model(), clip=0.0), ValueError, r"clip: .*math\.inf"),
        (lambda: train(model(), ema=1.5), ValueError, "ema"),
        (lambda: train(model(), evaluate_every=0), ValueError, "evaluate_every"),
        (lambda: train(model(), checkpoint_every=0), ValueError, "checkpoint_every"),
        (lambda: train(model(), amp=torch.float16), ValueError, "amp: expected torch.bfloat16"),
        (lambda: train(model(), seed="a"), TypeError, "seed"),
        (lambda: train(model(), generator=3), TypeError, "generator: expected a Generator"),
        (lambda: train(model(), checkpoint=3), TypeError, "checkpoint: expected the path"),
        (lambda: train(model(), checkpoint="."), IsADirectoryError, "checkpoint: .*folder"),
        (lambda: train(model(), checkpoint="no/run"), FileNotFoundError, "checkpoint: .*create no"),
        (lambda: train(model(), condition="classes"), ValueError, "data: .*labels"),
        (
            lambda: train(model(), Items(samples()), condition="classes"),
            ValueError,
            "data: .*samples alone",
        ),
        (
            lambda: train(model(), (samples(), labels()), condition="color"),
            TypeError,
            "takes no argument 'color'",
        ),
        (lambda: train(model(), condition_dropout=0.1), ValueError, "condition_dropout: .*0.1"),
        (
            lambda: train(
                affine(), (samples(), labels()), condition="classes", condition_dropout=0.1
            ),
            ValueError,
            "null: expected the label",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- several processes

TORCHRUN = """
    import os, sys, torch
    from scoresde import VPSDE, ScoreModel
    from scoresde.training.losses import TableTimes
    from scoresde.training import fit

    class Affine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.randn(()))     # differs between processes
            self.bias = torch.nn.Parameter(torch.randn(()))
            self.unused = torch.nn.Parameter(torch.zeros(3))
            self.seen = []
        def forward(self, x, label):
            self.seen.append(x.detach())
            return self.gain * x + self.bias

    rank, folder, steps = os.environ["RANK"], sys.argv[1], int(sys.argv[2])
    torch.manual_seed(int(rank))
    network = Affine()
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1)) * 0.5 + 1.0
    score = ScoreModel(network, VPSDE())
    result = fit(score, x, steps=steps, batch_size=512, lr=0.02, ema=0.99, held_out=x[:600],
                 time_sampler=TableTimes(torch.tensor([0.4])), checkpoint=f"{folder}/run",
                 progress=False, warmup=0, checkpoint_every=100)
    torch.save({"raw": result.raw.state_dict(), "score": result.score.state_dict(),
                "history": vars(result.history), "seen": network.seen[0],
                "calls": len(network.seen)}, f"{folder}/result{rank}")
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """gloo on the CPU under torchrun; tolerance as for one process."""
    (tmp_path / "train.py").write_text(textwrap.dedent(TORCHRUN))

    def run(steps):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        options = ["--standalone", str(tmp_path / "train.py"), str(tmp_path), str(steps)]
        subprocess.run([*launcher, *options], check=True, timeout=240)
        return [torch.load(tmp_path / f"result{rank}", weights_only=True) for rank in (0, 1)]

    first, second = run(200)
    assert first["seen"].shape == (256, 2)
    assert not torch.equal(first["seen"], second["seen"])
    resumed, other = run(500)
    assert resumed["calls"] < 310  # 300 steps and the evaluations
    for a, b in ((first, second), (resumed, other)):
        assert a["history"] == b["history"]
        for part in ("raw", "score"):
            assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    x = torch.randn(2000, 2, generator=generator(1)) * 0.5 + 1.0
    alpha, sigma = float(VPSDE().alpha(0.4)), float(VPSDE().sigma(0.4))
    gain = sigma / (alpha**2 * float(x.var()) + sigma**2)
    assert float(resumed["score"]["network.gain"]) == pytest.approx(gain, abs=0.05)
    assert not list(tmp_path.glob("*.partial"))
