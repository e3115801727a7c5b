"""The published networks: numbers, names and outputs of the official ones, and their pieces."""

import itertools

import numpy as np
import pytest
import torch
from scipy import signal
from torch import nn
from torch.func import jvp, vjp

from scoresde.networks import DDPMUNet, DiT, NCSNpp, NCSNv2
from scoresde.networks.ncsnv2 import InstanceNormPlus
from scoresde.networks.resampling import Double, DoubleAndConvolve, Halve, HalveAndConvolve

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

TAPS = (1.0, 3.0, 3.0, 1.0)
VE = {"fourier_scale": 16.0, "scale_by_sigma": True, "centered": False}
DDPMPP = {"taps": None, "progressive_input": "none"}


def perturbed(network, size=0.05):
    """The network with all parameters off their initial values, zeros included."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return network.eval()


# --- numbers


@pytest.mark.parametrize(
    ("network", "arguments", "parameters", "modules", "tensors", "trained"),
    [
        (NCSNpp, VE, 62_758_915, 59, 571, 570),
        (NCSNpp, VE | {"blocks": 8}, 107_587_075, 95, 963, 962),
        (NCSNpp, {"scale_by_sigma": True, "centered": False}, 62_693_251, 58, 570, 570),
        (NCSNpp, {}, 62_693_251, 58, 570, 570),
        (NCSNpp, {"blocks": 8}, 107_521_411, 94, 962, 962),
        (NCSNpp, DDPMPP, 61_804_419, 55, 564, 564),
        (NCSNpp, DDPMPP | {"blocks": 8}, 106_632_579, 91, 956, 956),
        (DDPMUNet, {}, 35_218_947, 37, 308, 308),
    ],
)
def test_published_sizes(network, arguments, parameters, modules, tensors, trained):
    with torch.device("meta"):
        built = network(**arguments)
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert len(built.all_modules) == modules
    assert len(list(built.parameters())) == tensors
    assert sum(p.requires_grad for p in built.parameters()) == trained


def test_published_names():
    with torch.device("meta"):
        names = list(NCSNpp(**VE).state_dict())
    assert names[:3] == ["sigmas", "all_modules.0.W", "all_modules.1.weight"]
    assert names[-1] == "all_modules.58.bias"
    assert "all_modules.4.GroupNorm_0.weight" in names
    assert sum(name.endswith("NIN_3.b") for name in names) == 4 + 1 + 1
    assert sum("Conv2d_0" in name for name in names) == 2 * 3
    with torch.device("meta"):
        names = list(DDPMUNet().state_dict())
    assert any(name.endswith("NIN_0.W") for name in names)
    assert not any("Conv_2" in name for name in names)


# --- options

OPTIONS = [
    {
        "progressive": progressive,
        "progressive_input": progressive_input,
        "combine": combine,
        "taps": taps,
        "biggan": biggan,
    }
    for progressive, progressive_input, combine, taps, biggan in itertools.product(
        ["none", "output_skip", "residual"],
        ["none", "input_skip", "residual"],
        ["sum", "cat"],
        [TAPS, None],
        [True, False],
    )
    if combine == "sum" or progressive_input == "input_skip"
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_options_combine(options):
    network = perturbed(NCSNpp(2, 8, (1, 2, 2), 1, (1, -1), 0.0, **options))
    x, label = torch.randn(2, 2, 6, 8), torch.tensor([1.0, 500.0])
    out = network(x, label)
    assert out.shape == x.shape
    (out - torch.randn_like(x)).square().sum().backward()
    for name, parameter in network.named_parameters():
        if not name.endswith("NIN_1.b"):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", [VE, {"progressive": "output_skip"}])
def test_options_differentiate_both_ways(options):
    network = perturbed(NCSNpp(2, 8, (1, 2), 1, **options)).double()
    x, u, v = torch.randn(3, 2, 2, 4, 4, dtype=torch.float64)
    label = torch.tensor([0.1, 20.0], dtype=torch.float64)
    _, tangent = jvp(lambda x: network(x, label), (x,), (u,))
    _, pullback = vjp(lambda x: network(x, label), x)
    torch.testing.assert_close((tangent * v).sum(), (pullback(v)[0] * u).sum())


def twins(**other):
    """Two networks with the same weights, the second with other arguments."""
    first, second = (NCSNpp(2, 8, (1, 2), 1, **arguments) for arguments in ({}, other))
    second.load_state_dict(perturbed(first).state_dict())
    return first, second.eval()


def test_output_divided_by_sigma():
    plain, divided = twins(scale_by_sigma=True)
    x, label = torch.randn(3, 2, 8, 8), torch.tensor([0.0, 500.9, 999.0])
    i = torch.tensor([0, 500, 999])
    sigma = 50.0 * (0.01 / 50.0) ** (i / 999)
    torch.testing.assert_close(divided(x, label) * sigma[:, None, None, None], plain(x, label))


def test_fourier_features_divide_by_the_label():
    network = perturbed(NCSNpp(2, 8, (1, 2), 1, **VE))
    x, label = torch.randn(3, 2, 8, 8), torch.tensor([1e-5, 0.3, 50.0])
    divided = network(x, label)
    network.scale_by_sigma = False
    torch.testing.assert_close(divided * label[:, None, None, None], network(x, label))


def test_images_in_the_unit_range():
    centered, unit = twins(centered=False)
    x, label = torch.rand(2, 2, 8, 8), torch.tensor([3.0, 30.0])
    torch.testing.assert_close(unit(x, label), centered(2 * x - 1, label))


def test_label_scale():
    plain, scaled = twins(label_scale=999.0)
    x, t = torch.rand(2, 2, 8, 8), torch.tensor([0.25, 0.75])
    torch.testing.assert_close(scaled(x, t), plain(x, 999 * t))


@pytest.mark.parametrize("label", [-1.0, 1000.0, float("nan")])
def test_labels_out_of_range_are_refused(label):
    network = NCSNpp(2, 8, (1, 2), 1, scale_by_sigma=True)
    with pytest.raises(ValueError, match=r"^label: .* 0 … 999"):
        network(torch.rand(1, 2, 8, 8), torch.tensor([label]))
    with pytest.raises(ValueError, match=r"^label: .* 0 … 9,"):
        NCSNv2(2, 4, scales=10)(torch.rand(1, 2, 8, 8), torch.tensor([10]))


def test_noise_levels_stay_in_double_precision():
    network = NCSNv2(2, 4, scales=10).half()
    assert network.sigmas.dtype == torch.float64
    assert network.begin_conv.weight.dtype == torch.float16
    expected = np.exp(np.linspace(np.log(50.0), np.log(0.01), 10))
    np.testing.assert_allclose(network.sigmas.numpy(), expected, rtol=1e-13)


# --- resampling


def filtered(image, taps, up, down):
    """The image, upsampled with zeros, filtered and decimated along both axes, by SciPy."""
    h = np.asarray(taps) / np.sum(taps) * up
    for axis in (0, 1):
        image = signal.upfirdn(h, image, up, down, axis=axis)
    return image


@pytest.mark.parametrize("taps", [TAPS, (1.0, 2.0, 4.0, 3.0), (1.0, -3.0, 8.0, 8.0, -3.0, 1.0)])
@pytest.mark.parametrize("shape", [(6, 8), (2, 4), (16, 2)])
def test_filters_are_those_of_scipy(taps, shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    halved = Halve(taps).double()(x)
    doubled = Double(taps).double()(x)
    k = len(taps)
    for row, channel in itertools.product(range(2), range(3)):
        image = x[row, channel].numpy()
        # Output j of the halved image is entry 2 j + k / 2 of the full convolution.
        full = filtered(image, taps, 1, 1)[k // 2 :: 2, k // 2 :: 2][
            : shape[0] // 2, : shape[1] // 2
        ]
        np.testing.assert_allclose(halved[row, channel], full, atol=1e-6)
        full = filtered(image, taps, 2, 1)[k // 2 - 1 :, k // 2 - 1 :][
            : 2 * shape[0], : 2 * shape[1]
        ]
        np.testing.assert_allclose(doubled[row, channel], full, atol=1e-6)


def test_filters_preserve_constants_away_from_the_border():
    x = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(Halve(TAPS)(x)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    torch.testing.assert_close(Double(TAPS)(x)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))


@pytest.mark.parametrize("taps", [None, TAPS])
def test_doubling_is_four_times_the_adjoint_of_halving(taps):
    x, y = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 4, 3)
    left, right = 4 * (Halve(taps)(x) * y).sum(), (x * Double(taps)(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_convolutions_after_filters_use_the_filtered_image_beyond_the_border():
    x = torch.randn(1, 1, 6, 8, dtype=torch.float64)
    image = np.pad(x[0, 0].numpy(), 8)  # zeros around it, as on an infinite plane
    kernel = np.outer(TAPS, TAPS) / 64
    down = HalveAndConvolve(1, 1, TAPS).double()
    weight = down.Conv2d_0.weight[0, 0].detach().numpy()
    plane = signal.correlate2d(signal.convolve2d(image, kernel), weight)
    # The plane starts 8 pixels before the image, and full convolutions shift by 3 more.
    expected = plane[8 + 3 : 8 + 3 + 6 : 2, 8 + 3 : 8 + 3 + 8 : 2]
    np.testing.assert_allclose(down(x)[0, 0].detach(), expected, atol=1e-7)
    up = DoubleAndConvolve(1, 1, TAPS).double()
    weight = up.Conv2d_0.weight[0, 0].detach().numpy()
    std = np.zeros((2 * image.shape[0], 2 * image.shape[1]))
    std[::2, ::2] = image
    plane = signal.correlate2d(signal.convolve2d(std, 4 * kernel), weight)
    expected = plane[16 + 2 : 16 + 2 + 12, 16 + 2 : 16 + 2 + 16]
    np.testing.assert_allclose(up(x)[0, 0].detach(), expected, atol=1e-7)


@pytest.mark.parametrize("taps", [None, TAPS])
def test_resampling_with_convolution_changes_sizes_by_two(taps):
    x = torch.randn(2, 3, 6, 8)
    assert HalveAndConvolve(3, 5, taps)(x).shape == (2, 5, 3, 4)
    assert DoubleAndConvolve(3, 5, taps)(x).shape == (2, 5, 12, 16)


# --- NCSNv2


@pytest.mark.parametrize(("design", "halvings"), [(64, 1), (128, 2), (256, 3)])
def test_ncsnv2_designs(design, halvings):
    network = perturbed(NCSNv2(2, 4, design, scales=10)).double()
    sizes = []
    for module in network.modules():
        if isinstance(module, InstanceNormPlus):
            module.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    x = torch.rand(2, 2, 16, 16, dtype=torch.float64)
    out = network(x, torch.tensor([0, 9]))
    assert out.shape == x.shape
    assert min(sizes) == 16 // 2**halvings
    assert network(x[..., :5, :7], torch.tensor([0, 9])).shape == (2, 2, 5, 7)


def test_ncsnv2_depends_on_the_label_by_its_scale_only():
    network = perturbed(NCSNv2(2, 4, scales=10))
    x = torch.rand(1, 2, 8, 8)
    first, last = network(x, torch.tensor([0])), network(x, torch.tensor([9]))
    torch.testing.assert_close(first * 50.0, last * 0.01)


def test_instance_norm_plus_is_its_formula():
    norm = InstanceNormPlus(5).double()
    nn.init.normal_(norm.beta)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    means = x.mean((2, 3))
    plain = nn.functional.instance_norm(x)
    again = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
    mixed = plain + (norm.alpha * again)[..., None, None]
    expected = norm.gamma[:, None, None] * mixed + norm.beta[:, None, None]
    torch.testing.assert_close(norm(x), expected)


# --- DiT


def test_untrained_transformer_blocks_are_the_identity():
    network = DiT(2, 16, 3, 2)
    h, features = torch.randn(2, 5, 16), torch.randn(2, 16)
    for block in network.blocks:
        assert torch.equal(block(h, features), h)


def test_transformer_depends_on_the_position_of_patches():
    network = perturbed(DiT(1, 16, 2, 2, patch=2))
    x = torch.randn(1, 1, 4, 6)
    label = torch.tensor([0.5])
    rolled = network(x.roll((2, 2), (2, 3)), label)
    assert (rolled - network(x, label).roll((2, 2), (2, 3))).abs().max() > 1e-4


def test_transformer_patches_cover_the_image():
    # With the identity inside, a linear map of each patch is left: no pixel may move another patch.
    network = perturbed(DiT(1, 16, 1, 2, patch=2))
    with torch.no_grad():
        for block in network.blocks:
            block.modulation.weight.zero_()
            block.modulation.bias.zero_()
    x = torch.randn(1, 1, 4, 6)
    label = torch.tensor([0.5])
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, label), x)[0, 0, :, :, 0, 0]
    for i, j, k, m in itertools.product(range(4), range(6), range(4), range(6)):
        same = (i // 2, j // 2) == (k // 2, m // 2)
        assert (jacobian[i, j, k, m] != 0) == same
