"""Results that nothing reads do not limit a symmetry; what is read through any detour does."""

import pytest
import torch
import torch.nn.functional as F
from architectures import EPS, IMAGES, TOKENS, VECTORS, Block, conv, norm, on, parameter
from attention_networks import Attention, layer_norm, words
from torch import nn

import quotientnet as qn


class Layer(nn.Module):
    """A layer of a transformer of width 4 with GELU, normalised before."""

    def __init__(self, mix=None):
        super().__init__()
        self.attention = Attention() if mix is None else Attention(mix)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)
        self.first, self.second = layer_norm(4), layer_norm(4)

    def forward(self, x):
        """Shape ``(N, positions, 4)``."""
        x = x + self.attention(self.first(x))
        return x + self.down(F.gelu(self.up(self.second(x))))


def causal(q, k, v):
    """Attention to what came before."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def vision(read, layers=1):
    """A transformer on patches, a class token before them; ``read`` chooses positions."""

    def forward(m, x):
        h = torch.cat([m.token.expand(len(x), -1, -1), m.patches(x)], 1) + m.places
        return m.o(read(m.norm(m.layers(h))))

    return Block(
        forward, token=parameter(1, 1, 4), patches=nn.Linear(4, 4), places=parameter(1, 6, 4),
        layers=nn.Sequential(*(Layer() for _ in range(layers))), norm=layer_norm(4),
        o=nn.Linear(4, 2),
    )  # fmt: skip


def language(read):
    """A causal transformer on words, with a table of positions."""

    def forward(m, x):
        places = torch.arange(x.shape[1])
        return read(m.o(m.norm(m.layer(m.words(x) + m.places(places)))))

    return Block(
        forward, words=nn.Embedding(7, 4), places=nn.Embedding(6, 4), layer=Layer(causal),
        norm=layer_norm(4), o=nn.Linear(4, 7, bias=False),
    )  # fmt: skip


def units(function, **members):
    """``function(m, h)`` of five units of ReLU."""
    return Block(lambda m, x: function(m, F.relu(m.a(x))), a=nn.Linear(4, 5), **members)


def by_sample(function, **members):
    """``function(m, h)`` of five units, each sample scaled by a parameter of its own."""
    return Block(
        lambda m, x: function(m, m.p[:, None] * F.relu(m.a(x))),
        a=nn.Linear(4, 5), p=parameter(6), **members,
    )  # fmt: skip


def both(m, h):
    """GELU of all units, of which two are read, and the others as they are."""
    return m.o(torch.cat([F.gelu(h)[:, :2], h[:, 2:]], 1))


def last(count=5):
    """A last layer."""
    return nn.Linear(count, 2)


# -- what is not read is free ---

NETWORKS = {
    "class token": on(TOKENS, 22, lambda: vision(lambda h: h[:, 0])),
    "class token, all read": on(TOKENS, 21, lambda: vision(lambda h: h.mean(1))),
    "class token after two layers": on(TOKENS, 37, lambda: vision(lambda h: h[:, 0], 2)),
    "last word": words(21, lambda: language(lambda y: y[:, -1])),
    "all words": words(21, lambda: language(lambda y: y)),
    # units
    "some units under GELU": on(VECTORS, 3, lambda: units(both, o=last())),
    "some units under softmax of pairs": on(VECTORS, 3, lambda: units(
        lambda m, h: m.o(torch.cat([h.view(-1, 5, 1).softmax(-1)[:, :2, 0], h[:, 2:]], 1)),
        o=last())),
    "an addition of which half is read": on(VECTORS, 3, lambda: units(
        lambda m, h: m.o(torch.cat([(h + 1.0)[:, :2], h[:, 2:]], 1)), o=last())),
    "concatenated and cut": on(VECTORS, 5, lambda: units(
        lambda m, h: m.o(torch.cat([F.gelu(h), h], 1)[:, 5:]), o=last())),
    "shape alone": on(VECTORS, 5, lambda: units(
        lambda m, h: m.o(h + torch.zeros_like(F.gelu(h))), o=last())),
    "an empty slice": on(VECTORS, 5, lambda: units(
        lambda m, h: m.o(h) + F.gelu(h)[:, :0].sum(), o=last())),
    "a part of a product": on(VECTORS, 8, lambda: units(
        lambda m, h: (m.o(F.relu(m.b(h))), m.b(h).tanh()[:, 3:].sum(1)),
        b=nn.Linear(5, 4), o=nn.Linear(4, 2))),
    "a division of which half is read": on(VECTORS, 4, lambda: Block(
        lambda m, x: (lambda h: m.o(torch.cat([
            (h / h[:, :2].norm(dim=1, keepdim=True))[:, :2], h[:, 2:]], 1)))(m.a(x)),
        a=nn.Linear(4, 5), o=last())),
    # places
    "samples under GELU": on(VECTORS, 1, lambda: by_sample(
        lambda m, h: m.o(F.gelu(h)[:1]), o=last())),
    "rows of a constant product": on(TOKENS, 10, lambda: Block(
        lambda m, x: (lambda h: (m.o(h.flatten(1)), m.b((h.new_ones(5, 5).tril() @ h)[:, 0])))(
            m.p[:, None] * F.relu(m.a(x))),
        a=nn.Linear(4, 5), p=parameter(5), o=nn.Linear(25, 2), b=last())),
    # images
    "one channel of a convolution": on(IMAGES, 1, lambda: Block(
        lambda m, x: (lambda h: m.o(F.relu(m.b(h))[:, 0].flatten(1)))(F.gelu(m.a(x))),
        a=conv(2, 3), b=conv(3, 2), o=nn.Linear(64, 2))),
    "one channel under GELU": on(IMAGES, 2, lambda: Block(
        lambda m, x: (lambda h: m.o(torch.cat([F.gelu(h)[:, :1], h[:, 1:]], 1).mean((2, 3))))(
            F.relu(m.a(x))),
        a=conv(2, 3), o=nn.Linear(3, 2))),
    "one pixel": on(IMAGES, 67, lambda: Block(
        lambda m, x: (lambda h: (m.o(h.flatten(1)), F.gelu(m.b(h))[:, :, 0, 0]))(
            F.relu(m.a(x)) * m.p),
        a=conv(2, 3, 1), b=conv(3, 2, 1), p=parameter(8, 8), o=nn.Linear(192, 2))),
}  # fmt: skip


# -- what is read through a detour is not ---


def written(m, h):
    """What is read is written through a view of what is not."""
    z = h * 1.0
    pair = z.view(-1, 5)[:, 1:3]
    pair.copy_(F.gelu(h)[:, 2:4])
    return m.o(z[:, :2])


TRAPS = {
    "several outputs read all": on(VECTORS, 0, lambda: units(
        lambda m, h: (F.gelu(h)[:, :2], F.gelu(h)[:, 2:], m.o(h)), o=last())),
    "several uses of one result": on(VECTORS, 0, lambda: units(
        lambda m, h: (lambda y: m.o(y[:, :2]) + m.c(y.flip(1)[:, :3]))(F.gelu(h)),
        o=last(2), c=last(3))),
    "through a view made before a write": on(VECTORS, 1, lambda: units(written, o=last(2))),
    "softmax over what is not read": on(VECTORS, 0, lambda: units(
        lambda m, h: m.o(h.softmax(1)[:, :1]), o=last(1))),
    "layer norm of what is not read": on(VECTORS, 1, lambda: units(
        lambda m, h: m.o(F.layer_norm(h, (5,), eps=EPS)[:, :1]), o=last(1))),
    "group norm of what is not read": on(IMAGES, 1, lambda: Block(
        lambda m, x: m.o(F.group_norm(m.a(x), 1, eps=EPS)[:, 0].mean((1, 2))[:, None]),
        a=conv(2, 3), o=last(1))),
    "statistics of samples that are not read": on(VECTORS, 6, lambda: by_sample(
        lambda m, h: m.o(F.batch_norm(h, None, None, training=True, eps=EPS)[:1]), o=last())),
    "a running sum": on(VECTORS, 1, lambda: units(
        lambda m, h: m.o(h.cumsum(1)[:, -1:]), o=last(1))),
    "the largest": on(VECTORS, 1, lambda: units(
        lambda m, h: m.o(h.max(1, keepdim=True).values), o=last(1))),
    "sorted": on(VECTORS, 1, lambda: units(lambda m, h: m.o(h.sort(1).values[:, :1]), o=last(1))),
    "an unknown operation": on(VECTORS, 1, lambda: units(
        lambda m, h: m.o(torch.special.bessel_j0(h).roll(2, 1)[:, :1] * h[:, :1]), o=last(1))),
    "keys of words that are not read": on(TOKENS, 4, lambda: Block(
        lambda m, x: (lambda h: m.o(F.scaled_dot_product_attention(
            h[:, :1], m.p[:, None] * h, m.v(x))[:, 0]))(m.a(x)),
        a=nn.Linear(4, 3), p=parameter(5), v=nn.Linear(4, 3), o=last(3))),
    "without gradients": on(VECTORS, 0, lambda: units(
        lambda m, h: m.o(_without_gradients(lambda: F.gelu(h) * 1.0)[:, :1] * h.sum(1, True)),
        o=last(1))),
    "a product of matrices read on its diagonal": on(VECTORS, 8, lambda: units(
        lambda m, h: (m.b(h) @ m.w).diagonal().sum(), b=nn.Linear(5, 3), w=parameter(3, 6))),
}  # fmt: skip


def _without_gradients(function):
    with torch.no_grad():
        return function()


def checked(architecture, training=False):
    """The symmetry of a network, sound and complete."""
    model, inputs = architecture.build().train(training), architecture.inputs()
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert found.gap > 1e6
    return symmetry, found


@pytest.mark.parametrize("name", NETWORKS)
def test_sound_and_complete_where_a_part_is_read(name):
    symmetry, found = checked(NETWORKS[name])
    assert found.found == NETWORKS[name].dimension


@pytest.mark.parametrize("name", TRAPS)
def test_what_is_read_through_a_detour_is_not_freed(name):
    symmetry, found = checked(TRAPS[name])
    assert found.found == TRAPS[name].dimension


def test_a_comparison_reads():
    model = units(
        lambda m, h: m.o(torch.where(F.gelu(h).flip(1) > 0.5, h, 0.5 * h)[:, :1]),
        o=last(1),
    )
    symmetry = qn.discover(model, torch.randn(6, 4))
    pinned = [p for p in symmetry.pinned if p.place == "a"]
    assert [(p.channels, p.operation) for p in pinned] == [((4,), "gelu")]
    qn.verify_sound(model, symmetry, torch.randn(6, 4)).require()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_running_statistics_are_read_of_every_channel(training):
    model = units(
        lambda m, h: m.o(m.n(h * m.p[:, None])[:1, :2]),
        n=norm(5, 1),
        o=last(2),
        p=parameter(6),
    )
    model, inputs = model.double().train(training), torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    qn.verify_complete(model, symmetry, inputs).require()
    assert len(symmetry.group.incidence["n.running_mean"][0].index) == 5
    # One scale for each channel's filters, one for each channel's results, one for all samples.
    assert symmetry.group.dimension == 5 + 5 + 1


def test_state_is_read():
    def forward(m, h):
        m.seen.copy_(F.gelu(h).mean(0))
        return m.o(h[:, :1])

    model = units(forward, o=last(1))
    model.register_buffer("seen", torch.ones(5))
    assert qn.discover(model, torch.randn(6, 4)).group.dimension == 0


def test_both_branches_of_a_condition_are_read():
    model = units(
        lambda m, h: m.o(torch.cond(h.sum() > 0, m.first, m.second, (h,))[:, :1] * h[:, 1:2]),
        first=nn.Sequential(nn.Linear(5, 3), nn.GELU()), second=nn.Linear(5, 3), o=last(1),
    ).double()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    assert (
        symmetry.group.dimension == 1
    )  # the sum ties all, the branch pins nothing but itself


def test_a_tied_weight_of_which_one_use_reads_a_part():
    model = Block(
        lambda m, x: (F.gelu(F.linear(x, m.w))[:, :1], m.o(F.relu(F.linear(x, m.w)))),
        w=parameter(3, 4), o=nn.Linear(3, 2),
    ).double()  # fmt: skip
    inputs = torch.randn(6, 4).double()
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs).require()
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert found.found == symmetry.group.dimension == 2


def test_pinned_channels_are_told_of_what_is_read():
    model = Block(
        lambda m, x: m.o(F.gelu(m.a(m.i(x)))[:, -1]),
        i=nn.Linear(4, 4), a=nn.Linear(4, 3), o=nn.Linear(3, 2),
    )  # fmt: skip
    pinned = qn.discover(model, torch.randn(3, 5, 4)).pinned
    assert {p.place: (p.channels, p.operation) for p in pinned} == {
        "a": ((0, 1, 2), "gelu"), "o": ((0, 1), "output"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["class token", "some units under GELU", "one pixel"])
def test_if_everything_counted_as_dead_the_group_would_not_be_sound(name, monkeypatch):
    def all_dead(graph, *_):
        nothing = torch.zeros((), dtype=torch.bool)
        return {
            node: dict.fromkeys(node.all_input_nodes, nothing)
            for node in graph.nodes if node.op == "call_function"
        }  # fmt: skip

    monkeypatch.setattr("quotientnet.symmetry.graph.needed_entries", all_dead)
    model, inputs = NETWORKS[name].build(), NETWORKS[name].inputs()
    assert not qn.verify_sound(model, qn.discover(model, inputs), inputs).holds


@pytest.mark.parametrize("name", ["class token", "some units under GELU", "one pixel"])
def test_without_the_pass_the_group_would_not_be_complete(name, monkeypatch):
    monkeypatch.setattr("quotientnet.symmetry.graph.needed_entries", lambda *_: {})
    model, inputs = NETWORKS[name].build(), NETWORKS[name].inputs()
    symmetry = qn.discover(model, inputs)
    assert qn.verify_complete(model, symmetry, inputs).missing


@pytest.mark.parametrize("layers, dimension", [(1, 22), (2, 37)])
def test_the_class_token_of_a_vision_transformer(layers, dimension):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=4, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=5,
        image_size=4, patch_size=2, num_channels=2, num_labels=2, layer_norm_eps=EPS,
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).double().eval()
    inputs = {"pixel_values": torch.randn(3, 2, 4, 4).double()}
    symmetry = qn.discover(model, inputs)
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert not symmetry.unknown and found.found == symmetry.group.dimension == dimension
