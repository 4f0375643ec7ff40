"""Recurrent layers agree with torch's, padding and all, and run any cell."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Context, Mapping, Model, Serial, Variables, leaf_paths
from mapping.errors import (
    FieldError,
    MissingKeyError,
    MissingVariablesError,
    ProtocolError,
    ShapeMismatchError,
)
from mapping.layers import (
    BatchNorm,
    Bidirectional,
    Dense,
    Dropout,
    GRUCell,
    LSTMCell,
    Recurrent,
    SimpleCell,
)

KEY = jax.random.key(0)
TRAIN = Context(jax.random.key(1), train=True)
INFER = Context()
LENGTHS = np.array([5, 2, 4])


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.partial(jax.jit, static_argnums=0)
def apply(mapping, variables, *inputs, ctx=INFER):
    return mapping.apply(variables, *inputs, ctx=ctx)


def output(layer, params, *inputs):
    return apply(layer, Variables(params), *inputs)[0]


def params_of(layer, *specs):
    abstract = jax.eval_shape(layer.init, KEY, *specs).params
    paths = leaf_paths(abstract)
    made = [
        jnp.asarray(0.5 * random(*leaf.shape, seed=number)).astype(leaf.dtype)
        for number, leaf in enumerate(paths.values())
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), made)


def close(actual, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


# torch

KINDS = {"lstm": LSTMCell, "gru": GRUCell, "simple": SimpleCell}
every_kind = pytest.mark.parametrize("kind", KINDS)
GATES = {
    "lstm": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "gru": (("ir", "iz", "in"), ("hr", "hz", "hn")),
    "simple": (("i",), ("h",)),
}
"""In torch's order."""


def torch_module(kind, d, features, *directions):
    """torch's module with the params of one direction or of two."""
    torch = pytest.importorskip("torch")
    made = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "simple": torch.nn.RNN}[kind]
    module = made(d, features, batch_first=True, bidirectional=len(directions) == 2)
    with torch.no_grad():
        for params, suffix in zip(directions, ("", "_reverse"), strict=False):
            for side, gates in zip(("ih", "hh"), GATES[kind], strict=True):
                kernel = np.concatenate([params[g]["kernel"] for g in gates], -1)
                zero = np.zeros(features, np.float32)
                bias = np.concatenate([params[g].get("bias", zero) for g in gates])
                getattr(module, f"weight_{side}_l0{suffix}").copy_(
                    torch.tensor(kernel.T)
                )
                getattr(module, f"bias_{side}_l0{suffix}").copy_(torch.tensor(bias))
    return torch, module


def torch_run(kind, x, lengths, features, *directions, carry=None):
    """Outputs and final carry, (c, h) of an LSTM, of packed sequences."""
    torch, module = torch_module(kind, x.shape[-1], features, *directions)
    given = torch.tensor(x)
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(
            given, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
    if carry is not None:
        parts = [torch.tensor(a)[None] for a in jax.tree.leaves(carry)]
        carry = tuple(reversed(parts)) if kind == "lstm" else parts[0]
    with torch.no_grad():
        y, last = module(given, carry)
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
    last = tuple(a.numpy() for a in reversed(last)) if kind == "lstm" else last.numpy()
    return y.numpy(), last


@pytest.mark.torch
@every_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_a_recurrent_layer_is_torchs(kind, lengths):
    layer = Recurrent(KINDS[kind](4), output="both")
    x = random(3, 5, 6)
    params = params_of(layer, x)
    carry = layer.cell.carry(spec(3, 6))
    carry = jax.tree.map(lambda a: random(*a.shape, seed=9), carry)
    y, last = torch_run(kind, x, lengths, 4, params["cell"], carry=carry)
    last = jax.tree.map(lambda a: a[0], last)
    close(output(layer, params, x, lengths, carry), (y, last))


@pytest.mark.torch
@every_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_reading_both_ways_is_torchs(kind, lengths):
    layer = Bidirectional(Recurrent(KINDS[kind](4), output="both"))
    x = random(3, 5, 6)
    params = params_of(layer, x)
    both = (params["forward"]["cell"], params["backward"]["cell"])
    y, last = torch_run(kind, x, lengths, 4, *both)
    ends = tuple(jax.tree.map(lambda a, way=way: a[way], last) for way in (0, 1))
    close(output(layer, params, x, lengths), (y, ends))


@pytest.mark.torch
def test_gradients_of_padded_sequences_are_torchs():
    layer, x = Recurrent(LSTMCell(3)), random(3, 5, 2)
    params = params_of(layer, x)
    ours = jax.grad(lambda p: (output(layer, p, x, LENGTHS) ** 2).sum())(params)["cell"]
    torch, module = torch_module("lstm", 2, 3, params["cell"])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(x), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    (module(packed)[0].data ** 2).sum().backward()
    for side, gates in zip(("ih", "hh"), GATES["lstm"], strict=True):
        kernel = np.concatenate([ours[g]["kernel"] for g in gates], -1)
        close(kernel.T, getattr(module, f"weight_{side}_l0").grad.numpy(), 1e-4)
    bias = np.concatenate([ours[g]["bias"] for g in GATES["lstm"][1]])
    close(bias, module.bias_hh_l0.grad.numpy(), 1e-4)


# Lengths


def test_the_last_output_is_that_of_each_sequences_end():
    layer = Recurrent(GRUCell(4))
    x = random(3, 5, 2)
    params = params_of(layer, x)
    sequence = output(layer, params, x, LENGTHS)
    assert not sequence[1, 2:].any()
    assert sequence[1, :2].all()
    last = dataclasses.replace(layer, output="last")
    close(output(last, params, x, LENGTHS), sequence[np.arange(3), LENGTHS - 1])
    close(output(last, params, x), output(layer, params, x)[:, -1])
    back = dataclasses.replace(layer, reverse=True)
    last = dataclasses.replace(back, output="last")
    close(output(last, params, x, LENGTHS), output(back, params, x, LENGTHS)[:, 0])


@pytest.mark.parametrize("reverse", [False, True])
def test_each_sequence_is_treated_as_if_it_were_alone(reverse):
    layer = Recurrent(LSTMCell(4), output="both", reverse=reverse)
    x, lengths = random(2, 5, 2), np.array([5, 3])
    params = params_of(layer, x)
    y, carry = output(layer, params, x, lengths)
    for i, length in enumerate(lengths):
        alone = output(layer, params, x[i, :length])
        close((y[i, :length], jax.tree.map(lambda a, i=i: a[i], carry)), alone)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_empty_sequence_leaves_the_carry_and_says_zero(reverse):
    layer = Recurrent(SimpleCell(2), output="carry", reverse=reverse)
    x, carry = random(2, 3, 2), random(2, 2, seed=1)
    params = params_of(layer, x)
    lengths = np.array([0, 3])
    np.testing.assert_array_equal(output(layer, params, x, lengths, carry)[0], carry[0])
    layer = dataclasses.replace(layer, output="last")
    got = output(layer, params, x, lengths, carry)
    assert not got[0].any()
    assert got[1].all()


def test_a_length_beyond_the_end_means_the_end():
    layer, x = Recurrent(SimpleCell(2), output="last"), random(2, 3, 2)
    params = params_of(layer, x)
    got = output(layer, params, x, np.array([3, 9], np.uint8))
    close(got, output(layer, params, x))


def test_not_even_nan_in_the_padding_matters():
    layer = Recurrent(LSTMCell(3), output="both")
    x = random(3, 5, 2)
    params = params_of(layer, x)
    dirty = np.where((np.arange(5) < LENGTHS[:, None])[..., None], x, np.nan)

    def loss(params, x):
        y, carry = output(layer, params, x, LENGTHS)
        return (y**2).sum() + sum((c**2).sum() for c in carry)

    clean = jax.value_and_grad(loss)(params, x)
    jax.tree.map(
        np.testing.assert_array_equal, jax.value_and_grad(loss)(params, dirty), clean
    )


# The loop


def test_a_sequence_in_two_pieces_is_the_sequence():
    layer, x = Recurrent(LSTMCell(4), output="both"), random(2, 7, 3)
    params = params_of(layer, x)
    whole, end = output(layer, params, x)
    first, carry = output(layer, params, x[:, :3])
    second, carry = output(layer, params, x[:, 3:], None, carry)
    close(np.concatenate([first, second], 1), whole)
    close(carry, end)


def test_writing_out_steps_changes_nothing():
    layer, x = Recurrent(GRUCell(3)), random(2, 7, 3)
    params = params_of(layer, x)
    close(
        output(dataclasses.replace(layer, unroll=3), params, x),
        output(layer, params, x),
        1e-6,
    )


def test_leading_axes_are_batch():
    layer = Bidirectional(Recurrent(GRUCell(3), output="last"), join="sum")
    x, lengths = random(2, 3, 4, 5), np.array([[4, 1, 2], [3, 4, 1]])
    params = params_of(layer, x)
    got = output(layer, params, x, lengths)
    assert got.shape == (2, 3, 3)
    flat = output(layer, params, x.reshape(6, 4, 5), lengths.reshape(6))
    close(got.reshape(6, 3), flat)
    close(got[1, 0], output(layer, params, x[1, 0], lengths[1, 0]))


@every_kind
def test_bfloat16_inputs_with_float32_params_run_in_float32(kind):
    layer = Recurrent(KINDS[kind](3), output="both")
    x = jnp.asarray(random(2, 4, 3), jnp.bfloat16)
    params = params_of(layer, x)
    got = output(layer, params, x, np.array([4, 2]))
    assert {a.dtype.name for a in jax.tree.leaves(got)} == {"float32"}
    exact = output(layer, params, x.astype("float32"), np.array([4, 2]))
    close(got, exact, 1e-6)


@pytest.mark.parametrize("join", ["concat", "sum", "mean", "product"])
def test_joins_are_what_they_say(join):
    layer, x = Bidirectional(Recurrent(SimpleCell(3)), join=join), random(2, 4, 3)
    params = params_of(layer, x)
    ahead = output(layer.forward, params["forward"], x)
    reverse = dataclasses.replace(layer.forward, reverse=True)
    back = output(reverse, params["backward"], x)
    expected = {
        "concat": np.concatenate([ahead, back], -1),
        "sum": ahead + back,
        "mean": (ahead + back) / 2,
        "product": ahead * back,
    }
    close(output(layer, params, x), expected[join], 1e-6)


def test_directions_may_differ_and_take_a_carry_each():
    back = Recurrent(GRUCell(2), reverse=True, output="carry")
    layer = Bidirectional(Recurrent(SimpleCell(3), output="carry"), back)
    x, carry = random(2, 4, 5), (random(2, 3, seed=1), random(2, 2, seed=2))
    params = params_of(layer, x)
    ahead, behind = output(layer, params, x, None, carry)
    close(ahead, output(layer.forward, params["forward"], x, None, carry[0]))
    close(behind, output(back, params["backward"], x, None, carry[1]))


# Cells of one's own


@dataclasses.dataclass(frozen=True)
class Mean(Mapping):
    """The running mean: a cell without params whose carry is a dict."""

    def carry(self, x):
        return {"sum": jnp.zeros(x.shape, x.dtype), "count": jnp.zeros(x.shape[:-1])}

    def apply(self, variables, carry, x, *, ctx):
        count = carry["count"] + 1
        total = carry["sum"] + x
        return ({"sum": total, "count": count}, total / count[..., None]), {}


@dataclasses.dataclass(frozen=True)
class Noisy(Model):
    """A cell with dropout and batch statistics inside."""

    features: int

    def carry(self, x):
        return jnp.zeros((*x.shape[:-1], self.features), x.dtype)

    def parts(self):
        return {
            "norm": BatchNorm(momentum=0.5),
            "drop": Dropout(0.5),
            "dense": Dense(self.features),
        }

    def forward(self, run, carry, x):
        new = jnp.tanh(run.dense(run.drop(run.norm(x))) + carry)
        return new, new


def test_a_cell_of_ones_own_runs():
    layer, x = Recurrent(Mean(), output="both"), random(3, 5, 2)
    assert layer.init(KEY, x) == Variables()
    y, carry = output(layer, {}, x, LENGTHS)
    expected = np.cumsum(x, 1) / np.arange(1, 6)[:, None]
    for i, length in enumerate(LENGTHS):
        close(y[i, :length], expected[i, :length])
    np.testing.assert_array_equal(carry["count"], LENGTHS)


def test_every_step_draws_its_own_mask_and_needs_a_key():
    layer, x = Serial(rnn=Recurrent(Noisy(4))), np.ones((1, 6, 64), np.float32)
    params = params_of(layer, x)
    norm = {"mean": jnp.zeros(64), "var": jnp.ones(64)}
    variables = Variables(params, {"rnn": {"cell": {"norm": norm}}})
    still = dataclasses.replace(TRAIN, capture=("rnn/cell/drop",))
    _, state = apply(layer, variables, random(1, 6, 64), ctx=still)
    dropped = np.asarray(state["rnn"]["cell"]["drop"][""])[0] == 0
    assert len({step.tobytes() for step in dropped}) == 6
    with pytest.raises(MissingKeyError, match="rnn/cell/drop: needs a random key"):
        layer.apply(variables, x, ctx=Context(train=True))
    assert np.isfinite(layer.apply(variables, x, ctx=INFER)[0]).all()


def test_the_state_of_a_cell_goes_from_step_to_step():
    layer, x = Recurrent(Noisy(4)), random(8, 3, 5)
    params = params_of(layer, x)
    norm = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    variables = Variables(params, {"cell": {"norm": norm}})
    _, state = apply(layer, variables, x, ctx=TRAIN)
    mean = np.zeros(5)
    for step in range(3):
        mean = 0.5 * mean + 0.5 * x[:, step].mean(0)
    close(state["cell"]["norm"]["mean"], mean)
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)
    _, state = apply(layer, variables, x)
    np.testing.assert_array_equal(state["cell"]["norm"]["mean"], norm["mean"])


def test_what_is_captured_in_a_cell_has_the_time_axis_of_the_input():
    layer, x = Recurrent(Noisy(4)), random(2, 3, 5)
    params = params_of(layer, x)
    norm = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    variables = Variables(params, {"cell": {"norm": norm}})
    ctx = dataclasses.replace(INFER, capture=("cell/dense", "cell"))
    y, state = apply(layer, variables, x, ctx=ctx)
    dense, (carry, output) = state["cell"]["dense"][""], state["cell"][""]
    assert dense.shape == (2, 3, 4)
    np.testing.assert_array_equal(output, y)
    before = np.concatenate([np.zeros((2, 1, 4)), carry[:, :-1]], 1)
    close(np.tanh(dense + before), y)
    jax.tree.map(np.testing.assert_array_equal, state["cell"]["norm"], norm)


# Errors


@dataclasses.dataclass(frozen=True)
class Growing(Mean):
    """A cell whose carry does not stay as it is."""

    def apply(self, variables, carry, x, *, ctx):
        return (jnp.concatenate([x, x]), x), variables.state


@dataclasses.dataclass(frozen=True)
class Single(Mean):
    """A cell that returns no pair."""

    def apply(self, variables, carry, x, *, ctx):
        return x, variables.state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LSTMCell(0),
            r"LSTMCell.features: expected a whole number >= 1, got 0",
        ),
        (
            lambda: Recurrent(Dense(3)),
            r"Recurrent.cell: .*method carry\(x\), got Dense",
        ),
        (lambda: Recurrent(GRUCell(3), output="all"), r"sequence, last, carry, both"),
        (
            lambda: Recurrent(GRUCell(3), unroll=0),
            r"Recurrent.unroll: expected a whole",
        ),
        (
            lambda: Bidirectional(Recurrent(GRUCell(3), reverse=True)),
            r"Bidirectional.forward: expected a Recurrent with reverse=False",
        ),
        (
            lambda: Bidirectional(Recurrent(GRUCell(3)), Recurrent(GRUCell(3))),
            r"Bidirectional.backward: expected a Recurrent with reverse=True",
        ),
        (
            lambda: Bidirectional(
                Recurrent(GRUCell(3)), Recurrent(GRUCell(3), "last", reverse=True)
            ),
            r"expected output='sequence', as the forward layer has, got 'last'",
        ),
        (lambda: Bidirectional(Recurrent(GRUCell(3)), join="add"), r"one of .*concat"),
    ],
)
def test_fields_that_do_not_fit_are_refused(make, message):
    with pytest.raises(FieldError, match=message):
        make()


LAYER = Serial(rnn=Recurrent(GRUCell(3), output="last"))
X = random(2, 4, 5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((random(5),), r"\[\*batch, time, features\], got float32\[5\]"),
        ((random(2, 0, 5),), r"the last output needs a step"),
        ((X, np.array([1, 2, 3])), r"lengths int\[2\] for float32\[2, 4, 5\], got int"),
        ((X, random(2)), r"expected lengths int\[2\].*got float32\[2\]"),
        ((X, None, random(2, 4)), r"/cell \(GRUCell\): expected a carry float32"),
        ((random(2, 4, 6),), r"/cell \(GRUCell\): params expect 5 features in"),
    ],
)
def test_inputs_that_do_not_fit_are_told_by_path(inputs, message):
    params = params_of(LAYER, X)
    with pytest.raises(ShapeMismatchError, match=rf"^rnn.*{message}"):
        LAYER(params, *inputs)


def test_missing_params_are_told_by_path():
    with pytest.raises(MissingVariablesError, match="rnn/cell"):
        LAYER({}, X)


def test_cells_that_break_the_protocol_are_told():
    with pytest.raises(ProtocolError, match=r"rnn/cell \(Growing\): expected a carry"):
        Serial(rnn=Recurrent(Growing()))({}, X)
    with pytest.raises(
        ProtocolError, match=r"rnn/cell \(Single\): a cell should return"
    ):
        Serial(rnn=Recurrent(Single()))({}, X)
    with pytest.raises(ShapeMismatchError, match=r"\(GRUCell\): expected \(carry, x\)"):
        Serial(rnn=GRUCell(3))(params_of(LAYER, X)["rnn"]["cell"], X)
