"""The training loop: the steps that it makes, and what is left after one that fails."""

import copy
import pickle

import geoopt
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import quotientnet as qn
from quotientnet.training import SAM, EntropySGD, NotFiniteError, train

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(24, 3, generator=GENERATOR).double()
Y = torch.randint(2, (24,), generator=GENERATOR)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
LOSS = nn.functional.cross_entropy


def make():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)
    ).double()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9} | options)


def assert_equal(a, b):
    """Nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        [assert_equal(a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        [assert_equal(x, y) for x, y in zip(a, b)]
    else:
        assert a == b


def states(*owners):
    return copy.deepcopy([owner.state_dict() for owner in owners])


def by_hand(epochs, batches=BATCHES):
    """The model, the optimizer and the losses of a loop of one's own."""
    model, losses = make(), []
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = LOSS(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return model, optimizer, schedule, losses


def test_it_is_the_loop_one_would_write():
    *owners, losses = by_hand(3)
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    seen = []

    def counted(epoch):
        seen.append(epoch)
        return iter(BATCHES)

    for batches in (BATCHES, loader, counted):
        model, ends = make(), []
        optimizer = sgd(model)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        history = train(
            model, optimizer, LOSS, batches, epochs=3, scheduler=schedule,
            on_epoch=lambda epoch, losses: ends.append((epoch, losses)),
        )  # fmt: skip
        assert_equal(states(*owners), states(model, optimizer, schedule))
        assert history.losses == tuple(losses) and history.ends == (3, 6, 9)
        assert ends == [(i, losses[3 * i : 3 * i + 3]) for i in range(3)]
    assert seen == [0, 1, 2]


def test_a_schedule_of_epochs_and_the_mode_are_the_users():
    model = make().eval()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(
        model, optimizer, LOSS, BATCHES, epochs=2, on_epoch=lambda *_: schedule.step()
    )
    assert optimizer.param_groups[0]["lr"] == 0.025 and not model.training
    assert int(model[1].num_batches_tracked) == 0


def _bound(model):
    manifold = qn.NodeWiseQuotient(qn.discover(model, X).group)
    return geoopt.optim.RiemannianSGD([qn.training.bind(model, manifold)], lr=0.01)


@pytest.mark.parametrize(
    "optimizer",
    [
        sgd,
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
        lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=5),
        lambda m: SAM(m, sgd(m)),
        lambda m: EntropySGD(m, sgd(m), inner_steps=3),
        _bound,
    ],
    ids=["SGD", "Adam", "LBFGS", "SAM", "EntropySGD", "bound"],
)
def test_every_optimizer_fits_and_goes_back_where_it_was(optimizer):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        [p.add_(0.01) for p in model.parameters()]
    chosen = optimizer(model)
    history = train(model, chosen, LOSS, [(X, Y)], epochs=30)
    assert history.losses[-1] < history.losses[0]
    loss, begun = Exploding(12), []

    def recorded(epoch):
        begun.append((loss.calls, states(model, chosen)))
        return [(X, Y)]

    with pytest.raises(NotFiniteError, match="the loss is inf") as raised:
        train(model, chosen, loss, recorded, epochs=20)
    assert raised.value.step == len(begun) - 1 and loss.calls == 12
    good = [state for calls, state in begun if calls + 1 < 12]
    assert_equal(good[-1], states(model, chosen))
    train(model, chosen, LOSS, [(X, Y)], epochs=1)
    if not isinstance(chosen, torch.optim.LBFGS):  # one step more, the same as before
        assert len(good) == len(begun) or states(model, chosen)[0]["0.weight"].equal(
            begun[len(good)][1][0]["0.weight"]
        )


class Exploding:
    """A loss that is infinite from some call on."""

    def __init__(self, bad: int, factor: float = float("inf")):
        self.calls, self.bad, self.factor = 0, bad, factor

    def __call__(self, outputs, targets):
        self.calls += 1
        return LOSS(outputs, targets) * (self.factor if self.calls >= self.bad else 1)


def prepared(**options):
    """A model, an optimizer, a schedule and a list of their states at the start of each step."""
    model = make()
    optimizer, begun = sgd(model, **options), []
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def batches(epoch):
        for batch in BATCHES:
            begun.append(states(model, optimizer, schedule))
            yield batch

    return model, optimizer, schedule, batches, begun


def test_an_update_that_leads_to_nan_is_undone():
    model, optimizer, _, batches, _ = prepared()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1e200 if step == 4 else 1.0
    )
    begun = []

    def recorded(epoch):
        for batch in batches(epoch):
            begun.append(states(model, optimizer, schedule))
            yield batch

    with pytest.raises(NotFiniteError) as raised:
        train(model, optimizer, LOSS, recorded, epochs=3, scheduler=schedule)
    error = raised.value
    assert error.step == 5 and error.parameter == "0.weight"
    assert "step 5: the loss is nan; lower" in str(error) and "'0.weight'" in str(error)
    assert isinstance(error, FloatingPointError) and isinstance(error, RuntimeError)
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.step) == (str(error), 5)
    assert_equal(begun[4], states(model, optimizer, schedule))
    assert optimizer.param_groups[0]["lr"] == 1e199


def test_a_gradient_that_is_not_finite_is_named():
    model, optimizer, schedule, batches, begun = prepared()

    def loss(outputs, targets):
        zero = 0 * model[3].bias.sum() if len(begun) == 3 else 1.0
        return LOSS(outputs, targets) + torch.as_tensor(zero).sqrt()  # slope 0/0

    message = "step 2: a gradient is NaN or infinite.*first gradient.*'3.bias'"
    with pytest.raises(NotFiniteError, match=message) as raised:
        train(model, optimizer, loss, batches, epochs=3, scheduler=schedule)
    assert raised.value.parameter == "3.bias"
    assert_equal(begun[1], states(model, optimizer, schedule))


def test_a_batch_with_nan_is_to_blame_itself():
    model, optimizer, schedule, batches, begun = prepared()

    def poisoned(epoch):
        for i, (x, y) in enumerate(batches(epoch)):
            yield (x * float("nan") if epoch == 1 and i == 1 else x), y

    with pytest.raises(NotFiniteError, match="step 4: the batch has NaN") as raised:
        train(model, optimizer, LOSS, poisoned, epochs=3, scheduler=schedule)
    assert (raised.value.step, raised.value.parameter) == (4, None)
    assert_equal(begun[4], states(model, optimizer, schedule))  # no update is undone


def test_the_last_update_is_looked_at_too():
    model = make()
    optimizer = sgd(model, lr=1e30)
    before = states(model, optimizer)
    with pytest.raises(NotFiniteError, match="step 0 made '0.weight' NaN") as raised:
        train(model, optimizer, Exploding(1, 1e300), [BATCHES[0]], epochs=1)
    assert (raised.value.step, raised.value.parameter) == (0, "0.weight")
    assert_equal(before, states(model, optimizer))


def test_parameters_that_are_not_finite_from_the_start_are_named():
    model = make()
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="first parameter.*'3.weight'") as raised:
        train(model, sgd(model), LOSS, BATCHES, epochs=1)
    assert (raised.value.step, raised.value.parameter) == (0, "3.weight")


class Interrupted(torch.optim.SGD):
    """SGD that is interrupted in the middle of its fifth update."""

    count = 0

    @torch.no_grad()
    def step(self, closure):
        loss = closure()
        self.count += 1
        if self.count == 5:
            next(iter(self.param_groups[0]["params"])).mul_(7)
            raise KeyboardInterrupt
        super().step()
        return loss


@pytest.mark.parametrize("where", ["update", "forward"])
def test_an_interrupt_leaves_the_start_of_the_step(where):
    model, _, _, batches, begun = prepared()
    kind = Interrupted if where == "update" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.1, momentum=0.9)

    def recorded(epoch):
        for batch in BATCHES:
            begun.append(states(model, optimizer))
            yield batch

    def loss(outputs, targets):
        if where == "forward" and len(begun) == 5:
            raise KeyboardInterrupt
        return LOSS(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, loss, recorded, epochs=3)
    assert len(begun) == 5
    assert_equal(begun[4], states(model, optimizer))


def test_errors_of_the_loss_are_passed_on():
    model, optimizer, schedule, batches, begun = prepared()

    def loss(outputs, targets):
        if len(begun) == 3:
            raise KeyError("mine")
        return LOSS(outputs, targets)

    with pytest.raises(KeyError, match="mine"):
        train(model, optimizer, loss, batches, epochs=1, scheduler=schedule)
    assert_equal(begun[2], states(model, optimizer, schedule))


def test_what_the_optimizer_does_not_move_gathers_no_gradient():
    model, seen = make().eval(), []
    model[0].weight.register_hook(lambda g: seen.append(model[0].weight.grad))
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    train(model, optimizer, LOSS, BATCHES, epochs=1)
    assert seen == [None] * 3  # what was there before each backward
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_refused(capsys):
    model = make()
    optimizer = sgd(model)
    refused = [
        (
            {"epochs": 0},
            ValueError,
            "train: epochs must be an integer of at least 1, got 0",
        ),
        (
            {"batches": iter(BATCHES)},
            ValueError,
            "can be gone through only once, but.* 2 epochs",
        ),
        ({"batches": []}, ValueError, "train: epoch 0 has no batches"),
        (
            {"batches": [X]},
            TypeError,
            r"must be a pair \(inputs, targets\), got a Tensor",
        ),
        (
            {"loss": nn.CrossEntropyLoss(reduction="none")},
            TypeError,
            r"scalar tensor, got \(8,\)",
        ),
        ({"loss": lambda *_: None}, TypeError, "scalar tensor, got NoneType"),
    ]
    before = states(model, optimizer)
    for changes, error, message in refused:
        options = {"loss": LOSS, "batches": BATCHES, "epochs": 2} | changes
        with pytest.raises(error, match=message):
            train(model, optimizer, options.pop("loss"), **options)
        assert_equal(before, states(model, optimizer))
    train(model, optimizer, LOSS, iter(BATCHES), epochs=1, progress="a bar")
    assert capsys.readouterr() == ("", "")


def test_a_batch_may_be_drawn_at_each_evaluation():
    model = make()
    generator, rows = torch.Generator().manual_seed(2), []

    def draw():
        rows.append(torch.randint(24, (6,), generator=generator))
        return X[rows[-1]], Y[rows[-1]]

    twin = copy.deepcopy(model)
    train(model, EntropySGD(model, sgd(model), 4), LOSS, [draw, draw], epochs=1)
    assert len(rows) == 8 and len({tuple(r.tolist()) for r in rows}) == 8
    by_hand, drawn = EntropySGD(twin, sgd(twin), 4), iter(rows)

    def closure():
        twin.zero_grad()
        r = next(drawn)
        loss = LOSS(twin(X[r]), Y[r])
        loss.backward()
        return loss

    by_hand.step(closure)
    by_hand.step(closure)
    assert_equal(states(twin), states(model))


def test_nan_inside_a_nested_batch_is_the_batch_s():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, pair):
            return self.linear(pair[0] + pair[1])

    model, x = Two(), torch.ones(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    good, bad = ((x, x), x[:, :1]), ((x, x * float("nan")), x[:, :1])
    twin = copy.deepcopy(model)
    qn.training.train(
        twin,
        torch.optim.SGD(twin.parameters(), 0.1),
        nn.functional.mse_loss,
        [good],
        epochs=1,
    )
    with pytest.raises(NotFiniteError, match="step 1: the batch has NaN entries"):
        qn.training.train(
            model, optimizer, nn.functional.mse_loss, [good, bad], epochs=1
        )
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.equal(p, q) and p.grad is None


def test_running_statistics_that_overflow_are_noticed():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    x = torch.tensor([[1e22, 1.0], [-1e22, 2.0], [0.0, 3.0]])  # the square overflows
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotFiniteError):
        qn.training.train(
            model, torch.optim.SGD(model.parameters(), 1e-3), nn.functional.mse_loss,
            [(x, x[:, 1:])], epochs=1,
        )  # fmt: skip
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
