"""Figures: their content, from the artists and from the pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import generator

from scoresde import VESDE, VPSDE
from scoresde import plots as p

pytest.importorskip("matplotlib")


def canvas_of(axes: object) -> torch.Tensor:
    """The one image on the axes as it was handed to Matplotlib; NaN where it is blank."""
    masked = axes.images[0].get_array()  # type: ignore[attr-defined]
    return torch.from_numpy(masked.filled(float("nan")).copy())


def test_a_grid_shows_every_image_at_its_position() -> None:
    images = torch.rand(5, 1, 3, 2, dtype=torch.float64)
    canvas = canvas_of(p.sample_grid(images, columns=3, limits=(0.0, 1.0)))
    assert canvas.shape == (2 * 4 + 1, 3 * 3 + 1)
    for k, image in enumerate(images):
        row, column = divmod(k, 3)
        found = canvas[1 + 4 * row : 4 + 4 * row, 1 + 3 * column : 3 + 3 * column]
        assert torch.equal(found, image[0])
    assert canvas[5:8, 7:9].isnan().all()  # the sixth cell is blank
    assert canvas[0].isnan().all()
    assert canvas[:, 0].isnan().all()


def test_limits_are_black_and_white() -> None:
    images = torch.tensor([[[-2.0, -1.0], [1.0, 3.0]]])
    canvas = canvas_of(p.sample_grid(images, limits=(-1.0, 1.0)))
    assert canvas[1:3, 1:3].tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_images_of_three_channels_are_in_color() -> None:
    images = torch.zeros(2, 3, 2, 2)
    images[0, 0] = 1.0
    axes = p.sample_grid(images, columns=2, limits=(0.0, 1.0))
    canvas = torch.from_numpy(axes.images[0].get_array().data.copy())
    assert canvas[1, 1].tolist() == [1.0, 0.0, 0.0]
    assert canvas[1, 4].tolist() == [0.0, 0.0, 0.0]
    assert canvas[0, 0].tolist() == [1.0, 1.0, 1.0]


def test_a_strip_has_a_row_per_sample_and_a_column_per_time() -> None:
    states = torch.rand(4, 2, 1, 3, 3, dtype=torch.float64)
    axes = p.path_strip(states, [1.0, 0.5, 0.25, 0.0], limits=(0.0, 1.0))
    canvas = canvas_of(axes)
    assert canvas.shape == (2 * 4 + 1, 4 * 4 + 1)
    assert torch.equal(canvas[5:8, 9:12], states[2, 1, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0.5", "0.25", "0"]
    assert axes.get_xticks().tolist() == [2.0, 6.0, 10.0, 14.0]  # the middle pixels


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_a_forward_path_has_the_distribution_of_the_diffusion(sde: VPSDE | VESDE) -> None:
    # variances and covariances of 20,000 samples; 5 standard errors: false alarms below 1e-5
    n, times = 20_000, [0.0, 0.3, 0.7]
    x0 = torch.full((n, 1), 2.0, dtype=torch.float64)
    states = p.forward_path(sde, x0, times, generator())
    assert torch.equal(states[0], x0)
    for k, t in enumerate(times[1:], start=1):
        mean, std = sde.marginal(x0[:1], t)
        assert abs(float(states[k].mean() - mean)) < 5 * float(std) / n**0.5
        assert abs(float(states[k].std() / std) - 1) < 5 / (2 * n) ** 0.5
    # one path: x_0.7 given x_0.3 is scale x_0.3 plus independent noise
    scale, _ = sde.transition(0.3, 0.7)
    early, late = (states[k, :, 0] - states[k].mean() for k in (1, 2))
    slope = float((early @ late) / (early @ early))
    std = float((late - slope * early).std() / early.std()) / n**0.5
    assert abs(slope - float(scale)) < 5 * std


def test_forward_paths_repeat_with_their_generator() -> None:
    x0 = torch.zeros(2, 3)
    before = torch.get_rng_state()
    paths = [p.forward_path(VPSDE(), x0, [0.1, 1.0], generator(1)) for _ in range(2)]
    assert torch.equal(*paths)
    assert torch.equal(before, torch.get_rng_state())


def test_the_nearest_data_are_found_for_any_number_of_samples() -> None:
    numbers = generator()
    data, samples = torch.rand(50, 4, generator=numbers), torch.rand(600, 4, generator=numbers)
    literal = [min(range(50), key=lambda k: float((data[k] - s).square().sum())) for s in samples]
    assert p.nearest_rows(samples, data).tolist() == literal


def test_nearest_neighbors_are_shown_below_their_samples() -> None:
    data = torch.rand(20, 2, 2, dtype=torch.float64, generator=generator())
    samples = data[[3, 1, 4, 1, 5]] + 1e-9
    axes = p.nearest_neighbors(samples, data, columns=3, limits=(0.0, 2.0))
    canvas = canvas_of(axes)
    assert canvas.shape == (4 * 3 + 1, 3 * 3 + 1)
    assert torch.equal(canvas[4:6, 7:9], data[4] / 2)  # below sample 2
    assert torch.equal(canvas[10:12, 4:6], data[5] / 2)  # below sample 4, in the second pair
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["sample", "nearest"] * 2


def test_a_histogram_counts_everything_on_common_bins() -> None:
    groups = {"one": torch.rand(300) + 1, "two": torch.rand(200) * 90 + 5}
    groups["one"][0] = torch.nan
    axes = p.likelihood_histogram(groups, marks={"code": 4.0}, bins=15)
    one, two = (container.patches for container in axes.containers)
    assert sum(bar.get_height() for bar in one) == 299
    assert sum(bar.get_height() for bar in two) == 200
    assert [bar.get_x() for bar in one] == [bar.get_x() for bar in two]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["one (1 not finite)", "two"]
    assert axes.lines[0].get_xdata()[0] == 4.0


def test_one_value_makes_a_histogram_too() -> None:
    axes = p.likelihood_histogram({"one": torch.tensor([3.0])}, bins=3)
    assert sum(bar.get_height() for bar in axes.containers[0].patches) == 1


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: p.sample_grid(torch.rand(2, 2, 4, 4)), "images"),
        (lambda: p.sample_grid(torch.rand(4, 4)), "images"),
        (lambda: p.sample_grid(torch.rand(0, 4, 4)), "images"),
        (lambda: p.sample_grid([1.0]), "images"),
        (lambda: p.sample_grid(torch.rand(1, 4, 4), columns=0), "columns"),
        (lambda: p.sample_grid(torch.rand(1, 4, 4), limits=(1.0, 0.0)), "limits"),
        (lambda: p.path_strip(torch.rand(3, 2, 4, 4), [0.0, 1.0]), "states, times"),
        (lambda: p.forward_path(VPSDE(), torch.rand(1, 2), [0.5, 0.1]), "times"),
        (lambda: p.forward_path(VPSDE(), torch.rand(1, 2), [0.5, 0.5]), "times"),
        (lambda: p.nearest_neighbors(torch.rand(1, 4, 4), torch.rand(2, 5, 5)), "samples, data"),
        (lambda: p.likelihood_histogram({}), "groups"),
        (lambda: p.likelihood_histogram({"a": torch.tensor([torch.nan])}), "groups"),
    ],
)
def test_bad_input_names_the_argument(call: object, word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{word}"):
        call()  # type: ignore[operator]


def test_figures_can_be_written_and_do_not_change_the_settings(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with p.style():
        axes = p.sample_grid(torch.rand(4, 8, 8))
    axes.figure.savefig(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_needed() -> None:
    code = (
        "import sys, torch; from scoresde import plots; assert 'matplotlib' not in sys.modules; "
        "plots.sample_grid(torch.rand(1, 2, 2)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"scoresde\[plots\]"):
        p.sample_grid(torch.rand(1, 2, 2))
    with pytest.raises(ModuleNotFoundError, match=r"scoresde\[plots\]"):
        p.style()
