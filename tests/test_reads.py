"""What operations read of their arguments, against the entries of derivatives that are not zero."""

import pytest
import torch
import torch.nn.functional as F
from architectures import Block
from torch import nn

from quotientnet.symmetry.live import needed_entries
from quotientnet.symmetry.nodes import live_nodes

X, Y, Z = (3, 4), (2, 3, 4), (2, 4, 3, 5)

PLACES = torch.tensor([2, 0])

# A function, the shapes of what it reads, and whether more counts as read than is.
OPERATIONS = {
    # entry by entry
    "add": (torch.add, [X, X]),
    "add of a row": (torch.add, [X, (4,)]),
    "add of a column": (torch.add, [Y, (3, 1)]),
    "mul of a scalar": (torch.mul, [X, ()]),
    "mul of a row of one": (torch.mul, [X, (1, 4)]),
    "div by itself": (lambda x: x / (x * x + 1), [X]),
    "gelu": (F.gelu, [X]),
    "dropout": (lambda x: F.dropout(x, 0.1), [X]),
    "where": (lambda x, y: torch.where(x > y, x, y * y), [X, X]),
    "clamp": (lambda x, y: torch.clamp(x, min=y), [X, X]),
    "prelu": (F.prelu, [(2, 4, 3), (4,)], True),
    "addcmul": (torch.addcmul, [X, X, (4,)]),
    "to": (lambda x: x.to(torch.float32).double(), [X]),
    "tril": (torch.tril, [X], True),
    # sums
    "sum": (lambda x: x.sum(1), [Y]),
    "sum of several": (lambda x: x.sum((0, -1)), [Y]),
    "sum of all": (lambda x: x.sum(), [Y]),
    "mean, kept": (lambda x: x.mean(-1, keepdim=True), [Y]),
    "norm": (lambda x: x.norm(dim=1), [Y]),
    "var": (lambda x: x.var(1), [Y]),
    "largest": (lambda x: x.max(1).values, [X], True),
    "largest of two": (torch.max, [X, X]),
    "softmax": (lambda x: x.softmax(1), [Y]),
    "log softmax": (lambda x: x.log_softmax(-1), [Y]),
    "cumsum": (lambda x: x.cumsum(1), [Y], True),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), [Y, (4,), (4,)]),
    "layer norm of two axes": (lambda x: F.layer_norm(x, (3, 4)), [Y]),
    "rms norm": (lambda x, w: F.rms_norm(x, (4,), w), [Y, (4,)]),
    "batch norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), [Z, (4,), (4,)]),
    "group norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [Z, (4,), (4,)], True),
    "instance norm": (lambda x: F.instance_norm(x), [Z]),
    "glu": (lambda x: F.glu(x, 1), [(2, 4, 3)]),
    "average pool": (lambda x: F.avg_pool2d(x, 2), [(2, 3, 4, 4)], True),
    "largest pool": (lambda x: F.max_pool1d(x, 2), [(2, 3, 4)], True),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 1), [Z]),
    # products
    "linear": (F.linear, [Y, (5, 4), (5,)]),
    "linear of a vector": (F.linear, [(4,), (5, 4), (5,)]),
    "linear to a number": (F.linear, [Y, (4,)], True),
    "matmul": (torch.matmul, [Y, (2, 4, 3)]),
    "matmul, batched once": (torch.matmul, [Y, (4, 5)]),
    "matmul, broadcast": (torch.matmul, [(2, 1, 3, 4), (5, 4, 2)]),
    "matmul of a vector": (torch.matmul, [(4,), (2, 4, 3)]),
    "matmul by a vector": (torch.matmul, [Y, (4,)]),
    "matmul of vectors": (torch.matmul, [(4,), (4,)]),
    "mm": (torch.mm, [X, (4, 2)]),
    "mv": (torch.mv, [X, (4,)]),
    "bmm": (torch.bmm, [Y, (2, 4, 5)]),
    "addmm": (torch.addmm, [(2,), X, (4, 2)]),
    "baddbmm": (torch.baddbmm, [(3, 1), Y, (2, 4, 5)]),
    "with itself": (lambda x: x @ x.mT, [Y]),
    "attention": (F.scaled_dot_product_attention, [Z, (2, 4, 6, 5), (2, 4, 6, 2), (3, 6)]),
    "attention of shared heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        [Z, (2, 2, 6, 5), (2, 2, 6, 5)], True),
    "einsum": (lambda x, y: torch.einsum("nij,njk->kni", x, y), [Y, (2, 4, 5)]),
    "einsum without a sum": (lambda x, y: torch.einsum("i,nj->nij", x, y), [(3,), X]),
    "einsum with dots": (lambda x, y: torch.einsum("...j,kj->...k", x, y), [Y, (5, 4)]),
    "conv": (F.conv2d, [(2, 2, 4, 4), (3, 2, 3, 3), (3,)], True),
    "conv by 1": (F.conv2d, [Z, (3, 4, 1, 1), (3,)]),
    "conv in groups": (lambda x, w, b: F.conv1d(x, w, b, groups=2), [(2, 4, 5), (6, 2, 1), (6,)]),
    "conv by 1 with steps": (lambda x, w: F.conv1d(x, w, stride=2), [(2, 4, 5), (3, 4, 1)], True),
    "conv of one sample": (F.conv1d, [(4, 5), (3, 4, 1)]),
    "transposed conv": (F.conv_transpose1d, [(2, 4, 5), (4, 3, 2)], True),
    # places
    "view": (lambda x: x.view(6, 4), [Y]),
    "flatten": (lambda x: x.flatten(1), [Y]),
    "squeeze": (lambda x: x[:, None].squeeze(1), [Y]),
    "permute": (lambda x: x.permute(2, 0, 1), [Y]),
    "transpose": (lambda x: x.mT, [Y]),
    "flip": (lambda x: x.flip(1), [Y]),
    "roll": (lambda x: x.roll(1, 0), [Y]),
    "repeat": (lambda x: x.repeat(2, 1, 2), [Y]),
    "repeat of entries": (lambda x: x.repeat_interleave(2, 1), [Y]),
    "expand": (lambda x: x[:, None].expand(-1, 3, -1, -1), [Y]),
    "expand as another": (lambda x, y: x.expand_as(y), [(3, 1), X]),
    "view as another": (lambda x, y: x.view_as(y), [Y, (6, 4)]),
    "zeros like another": (lambda x, y: x + torch.zeros_like(y), [X, X]),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), [Z]),
    "select": (lambda x: x[:, 1], [Y]),
    "select from the end": (lambda x: x[..., -1], [Y]),
    "slice": (lambda x: x[:, 1:, ::2], [Y]),
    "narrow": (lambda x: x.narrow(-1, 1, 2), [Y]),
    "a part of split": (lambda x: x.split([1, 2], 1)[1], [Y]),
    "parts of chunk": (lambda x: x.chunk(4, -1)[0] * x.chunk(4, -1)[2], [Y]),
    "a part of unbind": (lambda x: x.unbind(1)[2], [Y]),
    "parts of unbind": (lambda x: x.unbind(1)[2] + x.unbind(0)[0][:2], [Y]),
    "index": (lambda x: x[:, PLACES], [Y]),
    "index of rows and columns": (lambda x: x[PLACES, PLACES + 1], [X]),
    "index select": (lambda x: x.index_select(1, PLACES), [Y]),
    "diagonal": (lambda x: x.diagonal(0, 1, 2), [Y]),
    "cat": (lambda x, y: torch.cat([x, y], 1), [X, (3, 2)]),
    "cat of one twice": (lambda x: torch.cat([x, x], 0), [X], True),
    "stack": (lambda x, y: torch.stack([x, y], -1), [X, X]),
    # without a rule of what it reads
    "padded": (lambda x: F.pad(x, (1, 1)), [X], True),
    "an inverse": (lambda x: torch.linalg.inv(x @ x.mT), [Y], True),
}  # fmt: skip


def read_by(function, shapes, chosen):
    """Masks of what ``needed_entries`` says is read of positive inputs for chosen results."""
    model = Block(
        lambda m, *xs: function(*(torch.exp(x) for x in xs)).reshape(-1)[m.chosen]
    )
    model.register_buffer("chosen", chosen)
    xs = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    program = torch.export.export(model, tuple(xs), strict=False)
    graph = program.graph
    places = [n for n in graph.nodes if n.op == "placeholder"]
    held = program.state_dict | program.constants
    specs = program.graph_signature.input_specs
    constants = {
        n: held[s.target] for n, s in zip(places, specs) if s.target is not None
    }
    needed = needed_entries(graph, live_nodes(graph), constants)
    places, masks = [n for n in places if n not in constants], []
    for place, shape in zip(places, shapes):
        (exp,) = place.users
        masks.append(
            needed.get(exp, {}).get(place, torch.ones(())).bool().expand(shape)
        )
    return masks


def depends_on(function, shapes, chosen):
    """Masks of the entries by which derivatives of chosen results are not zero somewhere."""
    generator, masks = torch.Generator().manual_seed(0), [False] * len(shapes)
    for _ in range(16):
        xs = [
            torch.randn(s, generator=generator, dtype=torch.float64).exp()
            for s in shapes
        ]
        slopes = torch.autograd.functional.jacobian(
            lambda *xs: function(*xs).reshape(-1)[chosen], tuple(xs)
        )
        masks = [mask | (s != 0).any(0) for mask, s in zip(masks, slopes)]
    return masks


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_read_is_what_results_depend_on(name):
    function, shapes, *more = OPERATIONS[name]
    torch.manual_seed(0)
    size = function(*(torch.rand(s, dtype=torch.float64) + 0.5 for s in shapes)).numel()
    generator = torch.Generator().manual_seed(1)
    choices = [torch.randperm(size, generator=generator)[:n] for n in (1, 1, 2, size)]
    narrower = 0
    for chosen in choices:
        masks = read_by(function, shapes, chosen)
        for mask, expected in zip(masks, depends_on(function, shapes, chosen)):
            assert not (expected & ~mask).any(), "an entry that is read counts as dead"
            assert more or torch.equal(mask, expected)
            narrower += int((~mask).any())
    assert narrower or more or size == 1


def test_masks_stay_narrow():
    model = Block(
        lambda m, x: m.o(F.gelu(m.a(x)).transpose(0, 1)[-1]),
        a=nn.Linear(4, 5), o=nn.Linear(5, 2),
    )  # fmt: skip
    program = torch.export.export(model, (torch.zeros(3, 6, 4),), strict=False)
    graph = program.graph
    needed = needed_entries(graph, live_nodes(graph), {})
    shapes = {
        n.name: [tuple(m.shape) for m in masks.values()] for n, masks in needed.items()
    }
    assert shapes == {"gelu": [(1, 6, 1)], "linear": [(1, 6, 1)]}
    (mask,) = (m for n, ms in needed.items() if n.name == "gelu" for m in ms.values())
    assert mask.flatten().tolist() == [False] * 5 + [True]


def test_where_all_is_read_nothing_is_masked():
    model = nn.Sequential(
        nn.Linear(4, 5), nn.GELU(), nn.Unflatten(1, (1, 5)), nn.Linear(5, 2)
    )
    program = torch.export.export(model, (torch.zeros(6, 4),), strict=False)
    assert needed_entries(program.graph, live_nodes(program.graph), {}) == {}
