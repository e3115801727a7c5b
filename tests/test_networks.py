"""The properties of every network in ``scoresde.networks``, and those of single networks."""

import inspect
import math

import jaxtyping
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vjp, vmap

from scoresde import networks
from scoresde.networks import MLP, FourierEmbedding, NCSNv2, PositionalEmbedding, UNet
from scoresde.networks.blocks import attention

# PyTorch's forward mode compiles its own formulas with a function that it has deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

# Arguments of the constructors; those that a network has make it small.
SMALL = {
    "event_shape": (2, 8, 8),
    "channels": 2,
    "width": 8,
    "depth": 2,
    "multipliers": (1, 2),
    "blocks": 1,
    "heads": 2,
    "scales": 1001,
}
EXTREMES = [0.0, 1e-5, 1.0, 999.0, 1e3]


def is_network(member):
    return list(inspect.signature(member.forward).parameters)[1:3] == ["x", "label"]


MEMBERS = [
    member
    for name in networks.__all__
    if inspect.isclass(member := getattr(networks, name)) and is_network(member)
]


def takes(function, argument):
    return argument in inspect.signature(function).parameters


def build(member, **arguments):
    """A small network with all parameters moved off their initial values, zeros included."""
    vocabulary = SMALL | arguments
    chosen = {k: v for k, v in vocabulary.items() if takes(member, k)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = member(**chosen)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def draw(batch=3, shape=(2, 8, 8), dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *shape, generator=generator, dtype=dtype).to(device)
    label = torch.rand(batch, generator=generator, dtype=dtype).to(device)
    return x, label


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def member(request):
    return request.param


# --- the contract


def test_the_package_has_members():
    assert {MLP, UNet} <= set(MEMBERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
def test_output_has_shape_dtype_and_device_of_input(member, batch, dtype, device):
    network = build(member).to(device, dtype)
    x, label = draw(batch, dtype=dtype, device=device)
    out = network(x, label)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert out.device == x.device


def test_finite_at_extreme_labels(member, device):
    x, _ = draw(len(EXTREMES), device=device)
    out = build(member).to(device)(x, torch.tensor(EXTREMES, device=device))
    assert torch.isfinite(out).all()


def test_labels_of_other_dtypes_are_numbers_too(member):
    network = build(member)
    x, label = draw()
    integers = torch.tensor([0, 7, 999])
    torch.testing.assert_close(network(x, integers), network(x, integers.float()))
    label = label.double()
    torch.testing.assert_close(network(x, label), network(x, label.float()), rtol=1e-3, atol=1e-3)


def test_output_depends_on_label_and_state(member):
    network = build(member)
    x, label = draw()
    out = network(x, label)
    assert (network(x, label + 500) - out).abs().max() > 1e-4
    assert (network(x * 0.5, label) - out).abs().max() > 1e-4


def test_rows_are_independent(member, device):
    network = build(member).to(device)
    x, label = draw(5, device=device)
    together = network(x, label)
    for i in range(5):
        alone = network(x[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-5)


def test_gradient_reaches_every_parameter(member):
    network = build(member)
    x, label = draw()
    network(x, label).square().sum().backward()
    for name, parameter in network.named_parameters():
        # The softmax is invariant to a shift of all keys (NIN_1.b), whose gradient is rounding.
        if parameter.requires_grad and not name.endswith("NIN_1.b"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "member",
    [m for m in MEMBERS if m is not NCSNv2],  # as it was published
    ids=lambda member: member.__name__,
)
def test_untrained_network_predicts_almost_nothing(member):
    torch.manual_seed(0)
    network = member(**{k: v for k, v in SMALL.items() if takes(member, k)})
    x, label = draw()
    assert network(x, label).abs().max() < 1e-4


def test_eval_mode_is_deterministic_and_draws_nothing(member):
    network = build(member, dropout=0.5)
    x, label = draw()
    before = torch.random.get_rng_state()
    assert torch.equal(network(x, label), network(x, label))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "member", [m for m in MEMBERS if takes(m, "dropout")], ids=lambda member: member.__name__
)
def test_dropout_acts_in_training_only(member):
    network = build(member, dropout=0.5).train()
    x, label = draw()
    torch.manual_seed(0)
    assert not torch.equal(network(x, label), network(x, label))


def test_state_dict_round_trip(member):
    network = build(member)
    x, label = draw()
    arguments = {k: getattr(network, k) for k in inspect.signature(member).parameters}
    other = member(**arguments).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x, label), network(x, label))


def test_arguments_survive_lists_as_from_json(member):
    def as_json(value):
        return list(value) if isinstance(value, tuple) else value

    network = build(member)
    arguments = {k: as_json(getattr(network, k)) for k in inspect.signature(member).parameters}
    for k in arguments:
        assert getattr(member(**arguments), k) == getattr(network, k), k


def test_compiles_without_graph_breaks(member):
    torch.compiler.reset()
    network = build(member, classes=3)
    inputs = draw()
    if takes(member, "classes"):
        inputs = (*inputs, torch.tensor([2, 0, 3]))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), network(*inputs))


@pytest.mark.slow
def test_training_compiles_without_graph_breaks(member, monkeypatch):
    """With checkpointing, where there is any; the gradients are those of the eager network."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it appends to a list
    torch.compiler.reset()
    network = build(member, checkpointing=True, dropout=0.0).train()
    x, label = draw()
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = [
        torch.autograd.grad(each(x, label).square().sum(), trained)
        for each in (network, torch.compile(network, fullgraph=True, backend="eager"))
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_autocast_runs_in_low_precision(member):
    network = build(member)
    x, label = draw()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, label)
    assert out.shape == x.shape
    expected = network(x, label).detach()
    scale = float(expected.abs().max())
    torch.testing.assert_close(out.detach().float(), expected, rtol=0, atol=0.1 * scale)


@pytest.mark.parametrize(
    "member", [m for m in MEMBERS if takes(m, "checkpointing")], ids=lambda member: member.__name__
)
def test_checkpointing_changes_memory_and_not_gradients(member):
    x, label = draw()
    gradients, stored = {}, {}
    for checkpointing in (False, True):
        network = build(member, checkpointing=checkpointing, dropout=0.0).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor,
            lambda tensor: tensor,
        ):
            out = network(x, label)
        out.square().sum().backward()
        gradients[checkpointing] = [p.grad for p in network.parameters() if p.requires_grad]
        stored[checkpointing] = sum(sizes)
    torch.testing.assert_close(gradients[True], gradients[False])
    assert stored[True] < 0.5 * stored[False]


# --- derivatives: divergences, likelihoods and guidance need them


@pytest.fixture
def double(member):
    """A network and its input in float64, with the state as the only variable."""
    network = build(member, event_shape=(2, 4, 4)).double()
    x, label = draw(2, (2, 4, 4), torch.float64)
    return network, x, label


def test_divergence_by_vjp_is_the_trace_of_the_jacobian(double):
    network, x, label = double
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, label), x)
    d = x[0].numel()
    rows = torch.arange(len(x))
    trace = jacobian.reshape(len(x), d, len(x), d)[rows, :, rows, :].diagonal(0, 1, 2).sum(-1)
    _, pullback = vjp(lambda x: network(x, label), x)
    basis = torch.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    (rows,) = vmap(pullback)(basis)
    divergence = (rows * basis).flatten(2).sum((0, 2))
    torch.testing.assert_close(divergence, trace)


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_is_the_transpose_of_reverse_mode(double, grad):
    network, x, label = double
    u, _ = draw(2, (2, 4, 4), torch.float64, seed=1)
    v, _ = draw(2, (2, 4, 4), torch.float64, seed=2)
    with torch.set_grad_enabled(grad):
        _, tangent = jvp(lambda x: network(x, label), (x,), (u,))
        _, pullback = vjp(lambda x: network(x, label), x)
        (cotangent,) = pullback(v)
    torch.testing.assert_close((tangent * v).sum(), (cotangent * u).sum())


def test_second_derivatives(double):
    network, x, label = double
    v, _ = draw(2, (2, 4, 4), torch.float64, seed=1)

    def quadratic(x):
        _, pullback = vjp(lambda x: network(x, label), x)
        return (pullback(v)[0] * v).sum()

    gradient = torch.func.grad(quadratic)(x)
    step = 1e-5
    along = (quadratic(x + step * v) - quadratic(x - step * v)) / (2 * step)
    torch.testing.assert_close((gradient * v).sum(), along, rtol=1e-4, atol=1e-7)
    x = x.requires_grad_()
    (first,) = torch.autograd.grad(network(x, label), x, v, create_graph=True)
    (second,) = torch.autograd.grad((first * v).sum(), x)
    torch.testing.assert_close(second, gradient)


def test_vmap_over_samples_and_over_weights(double):
    network, x, label = double
    one = vmap(lambda x, label: network(x[None], label[None])[0])
    torch.testing.assert_close(one(x, label), network(x, label))
    parameters = {name: torch.stack([p, p]) for name, p in network.state_dict().items()}
    ensemble = vmap(lambda p: functional_call(network, p, (x, label)))(parameters)
    torch.testing.assert_close(ensemble[1], network(x, label))


def test_gradients_do_not_depend_on_the_kernel(double):
    network, x, label = double
    with torch.no_grad():
        fast = network(x, label)
    torch.testing.assert_close(fast, network(x, label))


# --- shapes


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 8, 8), (3, 4, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mlp_takes_any_event_shape(shape, dtype, device):
    network = build(MLP, event_shape=shape).to(device, dtype)
    x, label = draw(4, shape, dtype, device)
    out = network(x, label)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert network(x[:0], label[:0]).shape == (0, *shape)


def test_mlp_is_its_formula():
    network = build(MLP, event_shape=(5,), width=12, depth=3).double()
    x, label = draw(4, (5,), torch.float64)
    weights = network.state_dict()

    def linear(name, h):
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def silu(h):
        return h / (1 + torch.exp(-h))

    e = silu(linear("conditioning.hidden", network.conditioning.embedding(label)))
    e = silu(linear("conditioning.output", e))
    modulation = linear("modulation", e)
    gammas, betas = modulation[:, : 4 * 12].chunk(4, 1), modulation[:, 4 * 12 :].chunk(4, 1)
    h = linear("input", x)
    for k in range(3):
        mean, variance = h.mean(1, keepdim=True), h.var(1, correction=0, keepdim=True)
        normal = (h - mean) / (variance + 1e-5).sqrt()
        inner = silu(linear(f"blocks.{k}.hidden", gammas[k] * normal + betas[k]))
        h = h + linear(f"blocks.{k}.output", inner)
    expected = linear("output", gammas[3] * h + betas[3])
    torch.testing.assert_close(network(x, label), expected)


def test_untrained_mlp_blocks_are_modulated_by_one():
    network = MLP((5,), width=12, depth=3)
    scales, shifts = network.modulation.bias.chunk(2)
    assert torch.equal(scales, torch.ones_like(scales))
    assert torch.equal(shifts, torch.zeros_like(shifts))


IMAGE_MEMBERS = [member for member in MEMBERS if takes(member, "channels")]


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (1, 6), (16, 3)])
@pytest.mark.parametrize("member", IMAGE_MEMBERS, ids=lambda member: member.__name__)
def test_images_of_any_size(member, size, device):
    network = build(member, channels=3, multipliers=(1, 1, 2)).to(device)
    x, label = draw(2, (3, *size), device=device)
    out = network(x, label)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert (network(x * 0.5, label) - out).abs().max() > 1e-4


@pytest.mark.parametrize("member", IMAGE_MEMBERS, ids=lambda member: member.__name__)
def test_channels_last(member, device):
    network = build(member).to(device)
    x, label = draw(device=device)
    expected = network(x, label)
    network = network.to(memory_format=torch.channels_last)
    out = network(x.to(memory_format=torch.channels_last), label)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [(), (0,), (-1,), (0, 1)])
def test_unet_has_attention_at_the_given_levels(attention):
    network = build(UNet, attention=attention)
    names = {name for name, _ in network.named_parameters() if "NIN" in name}
    assert bool(names) == bool(attention)
    x, label = draw()
    assert network(x, label).shape == x.shape


# --- classes

CONDITIONAL = [member for member in MEMBERS if takes(member, "classes")]


@pytest.fixture(params=CONDITIONAL, ids=lambda member: member.__name__)
def conditional(request):
    return build(request.param, classes=3)


def test_classes_change_the_output(conditional):
    x, label = draw()
    outs = [conditional(x, label, torch.full((3,), k)) for k in range(4)]
    for i in range(4):
        for k in range(i):
            assert (outs[i] - outs[k]).abs().max() > 1e-4


def test_no_class_is_the_null_class(conditional):
    x, label = draw()
    assert torch.equal(conditional(x, label), conditional(x, label, torch.full((3,), 3)))


def test_classes_in_vectorized_code(conditional):
    x, label = draw()
    classes = torch.tensor([2, 0, 3])
    one = vmap(lambda x, label, k: conditional(x[None], label[None], k[None])[0])
    expected = conditional(x, label, classes)
    torch.testing.assert_close(one(x, label, classes), expected, rtol=1e-5, atol=1e-5)


def test_unknown_class_is_nan_where_it_cannot_be_refused(conditional):
    x, label = draw()
    one = vmap(lambda x, label, k: conditional(x[None], label[None], k[None])[0])
    out = one(x, label, torch.tensor([0, 4, -1]))
    assert torch.isfinite(out[0]).all()
    assert out[1:].isnan().all()


# --- bad input


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        (lambda a: a | {"x": a["x"][0]}, ValueError, "x: "),
        (lambda a: a | {"x": a["x"][:, :1]}, ValueError, "x: "),
        (lambda a: a | {"x": a["x"].long()}, TypeError, "x: "),
        (lambda a: a | {"x": a["x"].double()}, TypeError, "x: "),
        (lambda a: a | {"x": [0.0]}, TypeError, "x: "),
        (lambda a: a | {"x": a["x"][..., :0]}, ValueError, "x: "),
        (lambda a: a | {"label": a["label"][:2]}, ValueError, "label: "),
        (lambda a: a | {"label": a["label"][:, None]}, ValueError, "label: "),
        (lambda a: a | {"label": a["label"][0]}, ValueError, "label: "),
        (lambda a: a | {"label": 0.5}, TypeError, "label: "),
    ],
)
def test_bad_input_is_named(member, change, error, name):
    x, label = draw()
    with pytest.raises(error, match=f"^{name}"):
        build(member)(**change({"x": x, "label": label}))


@pytest.mark.parametrize(
    ("classes", "error"),
    [
        (torch.tensor([0, 1, 4]), ValueError),
        (torch.tensor([0, -1, 2]), ValueError),
        (torch.tensor([0, 1]), ValueError),
        (torch.tensor(1), ValueError),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError),
        (torch.tensor([True, False, True]), TypeError),
        (1, TypeError),
    ],
)
def test_bad_classes_are_named(conditional, classes, error):
    with pytest.raises(error, match=r"^classes: "):
        conditional(*draw(), classes)


@pytest.mark.parametrize("member", CONDITIONAL, ids=lambda member: member.__name__)
def test_classes_for_a_network_without(member):
    with pytest.raises(ValueError, match=r"^classes: .* without classes"):
        build(member)(*draw(), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("event_shape", (0, 2), ValueError),
        ("event_shape", 64, TypeError),
        ("channels", 0, ValueError),
        ("channels", 1.5, TypeError),
        ("width", 0, ValueError),
        ("width", -4, ValueError),
        ("width", True, TypeError),
        ("depth", 0, ValueError),
        ("multipliers", (), ValueError),
        ("multipliers", (1, 0), ValueError),
        ("multipliers", 2, TypeError),
        ("attention", 1, TypeError),
        ("blocks", 0, ValueError),
        ("attention", (2,), ValueError),
        ("attention", (-3,), ValueError),
        ("classes", 0, ValueError),
        ("dropout", 1.5, ValueError),
        ("dropout", math.nan, ValueError),
        ("label_scale", 0.0, ValueError),
        ("label_scale", math.inf, ValueError),
        ("heads", 3, ValueError),
        ("heads", 0, ValueError),
        ("patch", 0, ValueError),
        ("design", 32, ValueError),
        ("taps", (1.0, 2.0, 1.0), ValueError),
        ("taps", (1.0, 1.0), ValueError),
        ("taps", (1.0, 1.0, -1.0, -1.0), ValueError),
        ("taps", (1.0, "3", 3.0, 1.0), TypeError),
        ("progressive", "skip", ValueError),
        ("progressive_input", "output_skip", ValueError),
        ("combine", "add", ValueError),
        ("fourier_scale", 0.0, ValueError),
        ("group_size", 0, ValueError),
        ("init_scale", -1.0, ValueError),
        ("sigma_min", 0.0, ValueError),
        ("sigma_min", 60.0, ValueError),
        ("scales", 0, ValueError),
    ],
)
def test_bad_arguments_are_named(argument, value, error):
    members = [member for member in MEMBERS if takes(member, argument)]
    assert members
    for member in members:
        with pytest.raises(error, match=f"^{argument}"):
            build(member, **{argument: value})


# --- pieces


@pytest.mark.parametrize("dim", [2, 3, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positional_embedding_is_its_formula(dim, dtype):
    embedding = PositionalEmbedding(dim, scale=10.0, max_period=100.0)
    labels = [0.0, 0.3, 1.0, 7.0]
    out = embedding(torch.tensor(labels, dtype=dtype))
    half = dim // 2
    for row, label in zip(out, labels, strict=True):
        angles = [10.0 * label * 100.0 ** (-i / max(half - 1, 1)) for i in range(half)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles] + [0.0] * (dim % 2)
        torch.testing.assert_close(
            row,
            torch.tensor(expected, dtype=dtype),
            rtol=0,
            atol=1e-5 if dtype.itemsize < 8 else 1e-12,
        )


def test_fourier_embedding_is_its_formula():
    embedding = FourierEmbedding(6, scale=2.0)
    out = embedding(torch.tensor([0.7], dtype=torch.float64))[0]
    angles = [2 * math.pi * float(w) * 0.7 for w in embedding.W]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


def test_fourier_frequencies_are_frozen_saved_and_of_the_right_size():
    torch.manual_seed(0)
    embedding = FourierEmbedding(4096, scale=16.0)
    assert not embedding.W.requires_grad
    assert set(embedding.state_dict()) == {"W"}
    # standard error of a standard deviation from 2048 draws: 16 / sqrt(4096) = 0.25
    assert abs(float(embedding.W.std()) - 16.0) < 1.0


@pytest.mark.parametrize(
    ("embedding", "arguments"),
    [
        (PositionalEmbedding, {"dim": 1}),
        (PositionalEmbedding, {"scale": 0.0}),
        (PositionalEmbedding, {"max_period": -1.0}),
        (FourierEmbedding, {"dim": 5}),
        (FourierEmbedding, {"scale": -1.0}),
    ],
)
def test_bad_embeddings_are_named(embedding, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: "):
        embedding(**({"dim": 8} | arguments))


def test_embeddings_of_nearby_and_large_labels_differ():
    embedding = PositionalEmbedding(64, scale=1000.0)
    labels = torch.tensor([0.0, 1e-3, 2e-3, 0.5, 0.501, 1.0, 500.0, 501.0, 999.0])
    distance = torch.cdist(embedding(labels), embedding(labels)) + 10 * torch.eye(len(labels))
    assert distance.min() > 0.3


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4), (1, 1, 1)])
def test_attention_is_its_formula(shape, device):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(device)
    weights = torch.einsum("...ic,...jc->...ij", q, k) / math.sqrt(shape[-1])
    weights = weights.exp() / weights.exp().sum(-1, keepdim=True)
    expected = torch.einsum("...ij,...jc->...ic", weights, v)
    torch.testing.assert_close(attention(q, k, v), expected)
    with torch.no_grad():
        torch.testing.assert_close(attention(q, k, v), expected)


def test_attention_compiles_for_inference():
    torch.compiler.reset()
    q = torch.randn(1, 3, 4)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, q, q), attention(q, q, q))


def test_attention_uses_the_fused_kernel_where_no_derivative_can_be_taken(monkeypatch):
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *qkv: calls.append(1) or fused(*qkv),
    )
    q = torch.randn(1, 3, 4)
    attention(q, q, q)
    assert not calls
    with torch.no_grad():
        attention(q, q, q)
        assert len(calls) == 1
        jvp(lambda q: attention(q, q, q), (q,), (q,))
        vjp(lambda q: attention(q, q, q), q)
    assert len(calls) == 1
