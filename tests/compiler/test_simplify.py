"""Simplification: shorter, the same bits, nothing left to do the second time."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import compiler as mc
from compiler import errors, jaxprs
from compiler.passes.simplify import simplify
from mapping import from_config, to_config

SPECIAL = [0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan, 3e38]


def special(*shape):
    return jnp.resize(jnp.asarray(SPECIAL, jnp.float32), shape)


def names(program):
    """The primitives at every depth."""
    return [e.primitive.name for e, _ in jaxprs.nested(program.graph.jaxpr)]


def bits(tree):
    """The arrays of a tree as bytes, so that -0 is not 0 and nan is nan."""
    leaves = [
        jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)
    ]
    return [(np.shape(x), np.asarray(x).dtype, np.asarray(x).tobytes()) for x in leaves]


def _is_key(x):
    return jax.dtypes.issubdtype(jax.dtypes.result_type(x), jax.dtypes.prng_key)


def shortened(function, *inputs, variables=()):
    """The program before and after; the same bits, nothing to do the second time."""
    program = mc.trace(function, variables, *inputs)
    shorter = program >> simplify()
    assert bits(shorter(*inputs)) == bits(program(*inputs))
    again = shorter >> simplify()
    assert not again.history[-1].events.fired
    assert again.graph is shorter.graph
    return program, shorter


def left(function, x):
    """The primitives that are left of a function of one input."""
    shorter = mc.trace(lambda _, x: function(x), (), x) >> simplify()
    again = shorter >> simplify()
    assert not again.history[-1].events.fired
    return names(shorter)


X = special(2, 4)
N = jnp.arange(8, dtype=jnp.int32).reshape(2, 4) - 3
B = N > 0
W = jnp.asarray([2.0, 2.0])

GONE = {
    "times one": (lambda x: x * 1.0, X),
    "one times": (lambda x: jnp.ones((2, 4)) * x, X),
    "over one": (lambda x: x / 1.0, X),
    "minus zero": (lambda x: x - 0.0, X),
    "plus zero": (lambda x: sum([x]) + 0.0, X),
    "plus minus zero": (lambda x: x + (-0.0), X),
    "integer plus zero": (lambda x: x + 0, N),
    "integer times one": (lambda x: x * 1, N),
    "or false": (lambda x: x | False, B),
    "and true": (lambda x: True & x, B),
    "xor zero": (lambda x: x ^ 0, N),
    "shift by zero": (lambda x: lax.shift_left(x, jnp.zeros_like(x)), N),
    "max with lowest": (lambda x: jnp.maximum(x, jnp.iinfo(jnp.int32).min), N),
    "min with highest": (lambda x: jnp.minimum(jnp.iinfo(jnp.int32).max, x), N),
    "max of equals": (lambda x: jnp.maximum(x, x), X),
    "negated twice": (lambda x: jnp.negative(-x), X),
    "not twice": (lambda x: ~~x, B),
    "first power": (lambda x: lax.integer_pow(x, 1), X),
    "conjugated twice": (lambda x: jnp.conj(jnp.conj(x)), lax.complex(X, X)),
    "parts of complex": (lambda x: lax.real(lax.complex(x, -x)), X),
    "chosen among equals": (lambda x: jnp.where(x > 0, x, x), X),
    "chosen by a constant": (lambda x: lax.select(jnp.zeros(x.shape, bool), -x, x), X),
    "reshape to its shape": (lambda x: lax.reshape(x, (2, 4)), X),
    "reshaped and back": (lambda x: x.reshape(8).reshape(4, 2).reshape(2, 4), X),
    "squeezed what was expanded": (lambda x: x[None, :, None].squeeze((0, 2)), X),
    "transposed and back": (lambda x: x.T.T, X),
    "transposed thrice": (
        lambda x: x.transpose(1, 2, 0).transpose(1, 2, 0).transpose(1, 2, 0),
        X.reshape(2, 2, 2),
    ),
    "broadcast to its shape": (lambda x: lax.broadcast_in_dim(x, (2, 4), (0, 1)), X),
    "reversed twice": (lambda x: x[::-1][::-1], X),
    "reversed an axis of one": (lambda x: lax.rev(x, (0,)), X[:1]),
    "concatenate of one": (lambda x: lax.concatenate([x], 0), X),
    "padded by nothing": (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 0)]), X),
    "slice of the whole": (lambda x: lax.slice(x, (0, 0), (2, 4)), X),
    "updated as a whole": (lambda x: lax.dynamic_update_slice(-x, x, (0, 0)), X),
    "copied": (lambda x: jnp.array(x, copy=True), X),
    "converted to its type": (lambda x: lax.convert_element_type(x, jnp.float32), X),
    "converted wider and back": (
        lambda x: x.astype(jnp.float32).astype(jnp.bfloat16),
        X.astype(jnp.bfloat16),
    ),
    "a mask made numbers and back": (lambda x: x.astype(jnp.float32) != 0, B),
    "scan of nothing but itself": (
        lambda x: lax.scan(lambda c, _: (c, None), x, None, length=3)[0],
        X,
    ),
    "dead code": (lambda x: (jnp.sin(x) @ x.T, x)[1], X),
}


@pytest.mark.parametrize("name", GONE)
def test_nothing_is_left_of(name):
    function, x = GONE[name]
    assert left(function, x) == []


KEPT = {
    "a transpose that orders what a product keeps": (
        lambda x: lax.dot_general(x.transpose(1, 0, 2), x, (((2,), (2,)), ((), ()))),
        ["transpose", "dot_general"],
        X.reshape(2, 2, 2),
    ),
    "minus minus zero": (lambda x: x - (-0.0), ["sub"], X),
    "max with -inf, where both have half of the derivative": (
        lambda x: jnp.maximum(x, -jnp.inf),
        ["max"],
        X,
    ),
    "min with inf": (lambda x: jnp.minimum(jnp.inf, x), ["min"], X),
    "times zero": (lambda x: x * 0.0, ["mul"], X),
    "minus itself": (lambda x: x - x, ["sub"], X),
    "over itself": (lambda x: x / x, ["div"], X),
    "exp of log": (lambda x: jnp.exp(jnp.log(x)), ["log", "exp"], X),
    "root of square": (lambda x: jnp.sqrt(x * x), ["mul", "sqrt"], X),
    "two thirds": (lambda x: x * 3.0 * 0.7, ["mul", "mul"], X),
    "halves, which can underflow": (lambda x: x * 0.5 * 0.5, ["mul", "mul"], X),
    "a rounding": (
        lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
        ["convert_element_type"] * 2,
        X,
    ),
    "integers made floats, which saturate": (
        lambda x: x.astype(jnp.float32).astype(jnp.int8),
        ["convert_element_type"] * 2,
        N.astype(jnp.int16) * 100,
    ),
    "complex times one": (lambda x: x * (1 + 0j), ["mul"], lax.complex(X, X)),
    "a reshape that is one": (lambda x: x.reshape(4, 2), ["reshape"], X),
    "one stop of gradients": (
        lambda x: lax.stop_gradient(lax.stop_gradient(x)),
        ["stop_gradient"],
        X,
    ),
    "reduced precision": (
        lambda x: lax.reduce_precision(x, 8, 7),
        ["reduce_precision"],
        X,
    ),
    "a barrier": (lambda x: lax.optimization_barrier(x), ["optimization_barrier"], X),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_exact_is_kept(name):
    function, expected, x = KEPT[name]
    assert left(function, x) == expected


BECOMES = {
    "abs of abs": (lambda x: abs(abs(x)), ["abs"], X),
    "plus a negation": (lambda x: x + (-jnp.tanh(x)), ["tanh", "sub"], X),
    "minus a negation": (lambda x: x - (-x), ["add"], X),
    "a negated product": (lambda x: -(x * 3.0), ["mul"], X),
    "powers of two": (lambda x: x * 2.0 * -4.0, ["mul"], X),
    "integer factors": (lambda x: x * 3 * 7, ["mul"], N),
    "integer terms": (lambda x: (x + 3) + 7, ["add"], N),
    "numbers": (lambda x: x * jnp.sqrt(jnp.float32(64.0)), ["mul"], X),
    "arrays of numbers": (
        lambda x: x * (jnp.full((2, 4), 2.0) + jnp.full((2, 4), 1.0)).T.T,
        ["broadcast_in_dim", "mul"],
        X,
    ),
    "slices of slices": (lambda x: x[:, 1:][:, 1:3], ["slice"], X),
    "a slice at a number": (
        lambda x: lax.dynamic_slice(x, (0, 9), (2, 2)),
        ["slice"],
        X,
    ),
    "broadcasts": (
        lambda x: jnp.broadcast_to(x[:, None], (2, 3, 4))[None] * 1.0,
        ["broadcast_in_dim"],
        X,
    ),
    "transposes": (
        lambda x: x.transpose(1, 2, 0).transpose(1, 2, 0),
        ["transpose"],
        X.reshape(2, 2, 2),
    ),
    "conversions": (
        lambda x: x.astype(jnp.float32).astype(jnp.float16),
        ["convert_element_type"],
        X.astype(jnp.bfloat16),
    ),
    "a product of a transpose": (
        lambda x: x @ (x + 1.0).T,
        ["add", "dot_general"],
        jnp.ones((2, 4)),
    ),
    "a decided branch": (
        lambda x: lax.cond(True, jnp.sin, jnp.cos, x),
        ["sin"],
        X,
    ),
    "a clamped branch": (
        lambda x: lax.switch(7, [jnp.sin, jnp.cos, jnp.tanh], x),
        ["tanh"],
        X,
    ),
    "a loop of one step": (
        lambda x: lax.scan(lambda c, y: (c + y, c), x, x[None])[0],
        ["add"],
        X,
    ),
    "a loop never entered": (
        lambda x: lax.while_loop(lambda c: False, jnp.sin, x) + x,
        ["add"],
        X,
    ),
}


@pytest.mark.parametrize("name", BECOMES)
def test_what_is_left_is_the_least(name):
    function, expected, x = BECOMES[name]
    assert left(function, x) == expected


def test_every_identity_holds_bit_for_bit():
    cases = [case for table in (GONE, KEPT, BECOMES) for case in table.values()]
    inputs = [case[-1] for case in cases]

    def together(_, *xs):
        return [case[0](x) for case, x in zip(cases, xs, strict=True)]

    _, shorter = shortened(together, *inputs)
    each = sum(len(case[1]) for case in cases if len(case) == 3)
    assert len(names(shorter)) <= each


def test_a_carry_nobody_reads_leaves_the_loop():
    def f(w, x):
        def step(carry, y):
            h, count, dead = carry
            return (jnp.tanh(h @ w), count + 1, dead * 2.0), (h, dead @ w)

        start = (x[0], 0, x[0])
        (h, *_), (hs, _) = lax.scan(step, start, (x,))
        return h, hs

    _, shorter = shortened(f, jnp.ones((3, 2, 2)), variables=jnp.eye(2))
    (scan,) = [e for e in shorter.graph.jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert jaxprs.scan_counts(scan) == (1, 1)
    assert len(scan.invars) == 2  # w and h; nothing reads the stacked input
    assert len(scan.outvars) == 2
    assert names(shorter).count("dot_general") == 1


def test_a_carry_that_feeds_what_is_read_stays():
    def f(_, x):
        step = lambda c, _: ((c[1], c[0] + c[1], c[2] + c[0]), None)  # noqa: E731
        return lax.scan(step, (x, x, x), None, length=5)[0][1]

    _, shorter = shortened(f, jnp.arange(3.0))
    assert shorter(jnp.ones(1)).tolist() == [13.0]
    (scan,) = [e for e in shorter.graph.jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert jaxprs.scan_counts(scan) == (0, 2)


def test_what_a_loop_never_changes_is_a_constant_of_it():
    def f(_, x):
        def step(carry, y):
            h, fixed, two = carry
            return (h * fixed + y * two, fixed, two), two

        return lax.scan(step, (x[0], x[1], 2.0), x)

    _, shorter = shortened(f, special(3, 4))
    (scan,) = [e for e in shorter.graph.jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert jaxprs.scan_counts(scan) == (1, 1)


def test_what_a_while_never_changes_is_a_constant_of_it():
    def f(_, x):
        def step(carry):
            i, h, fixed, dead = carry
            return i + 1, h * fixed, fixed, dead * h

        return lax.while_loop(
            lambda c: c[0] < jnp.int32(c[2].shape[0]), step, (0, x, x + 1.0, x)
        )[:3]

    _, shorter = shortened(f, jnp.ones(3))
    (loop,) = [e for e in shorter.graph.jaxpr.jaxpr.eqns if e.primitive.name == "while"]
    assert len(loop.outvars) == 2
    assert loop.params["body_nconsts"] == 1


def test_outputs_of_branches_nobody_reads_go():
    def f(_, x):
        a, _, same = lax.cond(
            x.sum() > 0,
            lambda x: (jnp.sin(x), jnp.cos(x) @ x.T, x),
            lambda x: (jnp.tanh(x), x @ x.T, x),
            x,
        )
        return a, same

    program, shorter = shortened(f, jnp.ones((2, 2)))
    (cond,) = [e for e in shorter.graph.jaxpr.jaxpr.eqns if e.primitive.name == "cond"]
    assert len(cond.outvars) == 1
    assert "dot_general" in names(program)
    assert "dot_general" not in names(shorter)


def test_numbers_are_told_to_the_bodies_of_loops():
    def f(_, x):
        one = jnp.float32(1.0)
        return lax.scan(lambda c, y: (c * one + y, None), x[0], x)[0]

    _, shorter = shortened(f, special(3, 4))
    assert names(shorter).count("mul") == 0


def test_effects_are_kept_in_order(capfd):
    def f(_, x):
        jax.debug.print("first {}", x[0])
        jax.debug.print("then {}", x[0] * 1.0)
        jax.debug.print("then {}", x[0] * 1.0)
        lax.scan(lambda c, y: (jax.debug.print("in {}", y), (c, None))[1], 0.0, x)
        return x * 1.0

    program = mc.trace(f, (), jnp.ones(2))
    shorter = program >> simplify()
    assert names(shorter).count("debug_callback") == names(program).count(
        "debug_callback"
    )
    capfd.readouterr()
    jax.block_until_ready(shorter(jnp.ones(2)))
    jax.effects_barrier()
    printed = capfd.readouterr().out.split("\n")
    assert sorted(line.split()[0] for line in printed if line) == sorted(
        ["first", "then", "then", "in", "in"]
    )


def test_references_that_change_in_place_are_left_alone():
    def f(_, x):
        ref, other = jax.new_ref(x), jax.new_ref(x)
        ref[0] = 5.0
        before = ref[...]
        ref[0] = 7.0
        jax.jit(lambda r: r.__setitem__(1, 9.0))(other)
        return before, ref[...], other[...] * 1.0

    program = mc.trace(f, (), jnp.ones(3))
    shorter = program >> simplify()
    assert bits(shorter(jnp.ones(3))) == bits(program(jnp.ones(3)))


def test_derivative_rules_survive():
    @jax.custom_vjp
    def tripled(x):
        return x * 1.0

    tripled.defvjp(lambda x: (x * 1.0, None), lambda _, g: (3.0 * g,))
    program = mc.trace(lambda w, x: tripled(tripled(x * w)), W, jnp.ones(2))
    shorter = program >> simplify()
    grad = jax.grad(lambda w: shorter.function(w, jnp.ones(2)).sum())(W)
    assert grad.tolist() == [9.0, 9.0]
    assert names(shorter).count("custom_vjp_call") == 2


def mlp(params, x):
    for w, b in params:
        x = jax.nn.gelu(x @ w * 1.0 + b)
    return x


PARAMS = [(jnp.eye(4) * 0.5, jnp.ones((1, 4)))] * 3
DATA = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)


@jax.numpy_dtype_promotion("standard")
def test_a_whole_training_step_is_shortened():
    optimizer = optax.adamw(1e-2)

    def step(variables, x):
        params, state = variables
        loss, grads = jax.value_and_grad(lambda p: (mlp(p, x) ** 2).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    variables = (PARAMS, optimizer.init(PARAMS))
    program, shorter = shortened(step, DATA, variables=variables)
    assert len(names(shorter)) <= len(names(program)) - 16


def test_a_shortened_program_takes_every_transformation():
    program, shorter = shortened(mlp, DATA, variables=PARAMS)
    for f in (
        lambda p: jax.grad(lambda v: p.function(v, DATA).sum())(PARAMS),
        lambda p: jax.vmap(lambda x: p.function(PARAMS, x))(DATA[None].repeat(3, 0)),
        lambda p: jax.jvp(lambda x: p.function(PARAMS, x), (DATA,), (DATA,)),
        lambda p: lax.map(lambda x: p.function(PARAMS, x), DATA[None].repeat(3, 0)),
    ):
        np.testing.assert_allclose(
            *(
                jax.tree.leaves(jax.jit(lambda f=f, p=p: f(p))())[0]
                for p in (program, shorter)
            ),
            rtol=1e-6,
            atol=1e-7,
        )


def test_scopes_and_source_lines_stay():
    def f(_, x):
        with jax.named_scope("block"):
            inner = jax.jit(lambda x: jnp.sin(x * 1.0))
            return inner(x) * 1.0

    _, shorter = shortened(f, X)
    (sine,) = shorter.graph.jaxpr.jaxpr.eqns
    assert jaxprs.scope(sine) == "block"
    assert "test_simplify.py" in jaxprs.source(sine)


def test_what_happened_is_told_by_place_and_kind():
    def f(_, x):
        with jax.named_scope("net"), jax.named_scope("block"):
            for _ in range(3):
                x = jnp.sin(x) * 1.0
        return x

    _, shorter = shortened(f, X)
    (event,) = shorter.history[-1].events.fired
    assert event.path == "net/block"
    assert event.what == "multiplication by one, 3 times"
    assert "test_simplify.py" in event.source


@pytest.mark.parametrize("op", [lax.add, lax.sub])
@pytest.mark.parametrize("first", [0.0, -0.0])
@pytest.mark.parametrize("second", [0.0, -0.0])
def test_the_sign_of_a_sum_of_zeros_is_what_xla_makes_of_it(op, first, second):
    def f(_, x):
        zeros = jnp.full((10,), second)
        whole, one = jnp.full((10,), first), jnp.float32(first)
        swapped = op(jnp.full((10,), second), jnp.broadcast_to(one, (10,)))
        sums = op(whole, zeros), op(one, jnp.float32(second)), swapped
        python = (first + zeros, whole + second), (first - zeros, whole - second)
        return [1 / s + x for s in (*sums, *python[op is lax.sub])]

    shortened(f, jnp.float32(1.0))


@pytest.mark.parametrize("value", [-jnp.inf, 1.0])
def test_the_derivative_of_a_maximum_with_the_lowest_stays(value):
    def f(_, x):
        return jnp.maximum(x, -jnp.inf) - jnp.minimum(-x, jnp.inf)

    program = mc.trace(f, (), jnp.float32(value))
    found = [
        jax.grad(lambda x, p=p: p.function((), x))(jnp.float32(value))
        for p in (program, program >> simplify())
    ]
    assert found[0] == found[1]


def _taken(w, x):
    whole = jax.sharding.reshard(x, jax.sharding.PartitionSpec())
    return lax.scan(lambda c, a: (c + a @ w, a), jnp.zeros(3), whole[:1])[0]


def _stacked(_, x):
    whole = jax.sharding.reshard(x, jax.sharding.PartitionSpec("d"))
    return lax.scan(lambda c, _: (c * 2.0, c), whole, None, length=1)


@pytest.mark.parametrize("f", [_taken, _stacked])
def test_a_loop_of_one_step_on_an_explicit_mesh_is_left(f):
    mesh = jax.make_mesh((1,), ("d",), (jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        w, x = jnp.eye(3), jnp.ones((4, 3))
        program = mc.trace(f, w, x)
        shorter = program >> simplify()
        assert names(shorter) == names(program)
        assert bits(shorter(x)) == bits(program(x)) == bits(jax.jit(f)(w, x))


def test_weak_types_of_outputs_stay():
    def f(_, x):
        weak = lax.exp(1.0)
        return weak, x * 1.0, lax.select(True, weak, x[0, 0]), weak * lax.sqrt(4.0)

    program = mc.trace(f, (), X)
    shorter = program >> simplify()
    old, new = (p.graph.jaxpr.jaxpr.outvars for p in (program, shorter))
    assert [v.aval.weak_type for v in old] == [v.aval.weak_type for v in new]


def test_leaves_nobody_reads_stay():
    program = mc.trace(lambda w, x: x * 1.0, {"a": X, "b": X}, X)
    assert (program >> simplify()).graph.paths == ["a", "b"]


def test_parts_can_be_chosen():
    def f(_, x):
        return jnp.sin(x) * 1.0 + jnp.sin(x)

    program = mc.trace(f, (), X)
    assert names(program >> simplify(("algebra",))) == ["sin", "sin", "add"]
    assert names(program >> simplify(("duplicates",))) == ["sin", "mul", "add"]


def test_the_pass_is_data():
    step = simplify(("algebra", "duplicates"))
    assert from_config(json.loads(json.dumps(to_config(step)))) == step


def test_an_unknown_part_is_told():
    with pytest.raises(errors.UnknownPartError, match=r"algebra.*got 'speed'"):
        simplify(("speed",))


def test_other_batch_sizes_are_simplified_by_the_same_recipe():
    program = mc.trace(mlp, PARAMS, DATA) >> simplify()
    x = jnp.ones((5, 4))
    np.testing.assert_allclose(program(x), mlp(PARAMS, x), rtol=1e-6)


UNARY = [
    lambda x: -x,
    lambda x: x * 1.0,
    lambda x: x - 0.0,
    lambda x: x.T,
    lambda x: jnp.abs(x),
    lambda x: x[::-1],
    lambda x: x.reshape(-1).reshape(x.shape),
    lambda x: x[None].squeeze(0),
    lambda x: x * 2.0,
    lambda x: x + jnp.zeros((3, 3)) * jnp.full((3, 3), 2.0),
    lambda x: x.astype(jnp.float16).astype(jnp.float32),
    lambda x: lax.dynamic_slice(jnp.pad(x, 1), (1, 1), (3, 3)),
    lambda x: jnp.where(x > 0, x, 0.0),
    lambda x: lax.cumsum(x, 0),
    lambda x: jnp.maximum(x, -jnp.inf),
    lambda x: jnp.broadcast_to(x.max(0)[None], (3, 3)),
]
BINARY = [
    lambda x, y: x + y,
    lambda x, y: x - (-y),
    lambda x, y: y * x,
    lambda x, y: jnp.maximum(x, y),
    lambda x, y: jnp.where(x > y, x, y),
    lambda x, y: lax.cond(x[0, 0] > 0, lambda: (x, y), lambda: (y * 1.0, y))[0],
    lambda x, y: (
        lax.scan(
            lambda c, z: ((c[0] + z * c[1], c[1], c[2] * c[2]), None),
            (x[0], x[1], y[0]),
            y,
        )[0][0][None]
        + y
    ),
    lambda x, y: lax.fori_loop(
        0, 2, lambda i, c: (c[0] * 1.0 - y, c[1] + c[0]), (x, y)
    )[0],
    lambda x, y: lax.scan(lambda c, z: (c + z, z), x, y[None])[0],
]
STEP = st.tuples(
    st.integers(0, len(UNARY) + len(BINARY) - 1), st.integers(), st.integers()
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(STEP, min_size=2, max_size=12))
def test_random_programs_keep_every_bit(steps):
    def f(_, a, b):
        values = [a, b]
        for kind, i, j in steps:
            x, y = values[i % len(values)], values[j % len(values)]
            two = kind >= len(UNARY)
            values.append(BINARY[kind - len(UNARY)](x, y) if two else UNARY[kind](x))
        return values[-1], values[len(values) // 2]

    a = special(3, 3)
    b = jnp.arange(9.0).reshape(3, 3) - 3.0
    program, shorter = shortened(f, a, b)
    views = ("squeeze", "broadcast_in_dim")  # of a loop of one step
    old, new = (sum(name not in views for name in names(p)) for p in (program, shorter))
    assert new <= old
