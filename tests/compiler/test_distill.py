"""Values inside programs by path; losses between a teacher and its student."""

import dataclasses
import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from digits import data, mlp, trained
from flax import nnx
from zoo import normal

import compiler as mc
import mapping as mp
from compiler import jaxprs
from compiler.distill import Match, distill, fine_tune, fine_tuner, recover, tap
from compiler.distill import measures as m
from compiler.errors import DistillError, TapError, UnknownPathError
from compiler.passes.prune.plan import Plan
from compiler.program import Applied
from compiler.rewrite import Events
from mapping.core import Context, Variables

S, T = normal(6, 5, 8), normal(6, 5, 8, seed=1)
soft_targets = jax.jit(m.soft_targets)


@functools.partial(jax.jit, static_argnums=0)
def matched(match, student, teacher):
    return match(student, teacher, "here")


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def divergence(p, q):
    return (p * (np.log(p) - np.log(q))).sum(-1)


# -- the losses, against numpy in float64 ------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 300.0])
def test_soft_targets_are_the_divergence_of_softened_distributions(temperature):
    s, t = np.asarray(S, np.float64), np.asarray(T, np.float64)
    want = temperature**2 * divergence(
        softmax(t / temperature), softmax(s / temperature)
    )
    got = soft_targets(S, T, temperature)
    np.testing.assert_allclose(got, want, rtol=3e-4 if temperature > 100 else 1e-5)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_their_gradient_is_the_difference_of_the_distributions_times_t(temperature):
    got = jax.jit(jax.grad(lambda s: m.soft_targets(s, T, temperature).sum()))(S)
    q, p = (softmax(np.asarray(z, np.float64) / temperature) for z in (S, T))
    np.testing.assert_allclose(got, temperature * (q - p), atol=2e-6)


def test_they_are_differentiated_twice_and_with_respect_to_both():
    s, t = S[0, 0], T[0, 0]
    q = softmax(np.asarray(s, np.float64))
    hessian = jax.jit(jax.hessian(lambda s: m.soft_targets(s, t, 1.0)))(s)
    np.testing.assert_allclose(hessian, np.diag(q) - np.outer(q, q), atol=1e-6)

    def plainly(t):
        p = jax.nn.softmax(t)
        return (p * (jax.nn.log_softmax(t) - jax.nn.log_softmax(s))).sum()

    got = jax.jit(jax.grad(lambda t: m.soft_targets(s, t, 1.0)))(t)
    np.testing.assert_allclose(got, jax.jit(jax.grad(plainly))(t), atol=1e-6)


def test_at_high_temperature_they_are_the_error_of_the_centred_logits():
    s, t = (z - z.mean(-1, keepdims=True) for z in map(np.asarray, (S, T)))
    want = ((s - t) ** 2).sum(-1) / (2 * 8)
    np.testing.assert_allclose(soft_targets(S, T, 200.0), want, rtol=2e-2)


def test_classes_that_are_ruled_out_cost_nothing():
    s = jnp.array([[0.0, 1.0, -jnp.inf]])
    t = jnp.array([[2.0, 0.0, -jnp.inf]])
    want = divergence(softmax(np.array([2.0, 0.0])), softmax(np.array([0.0, 1.0])))
    np.testing.assert_allclose(soft_targets(s, t, 1.0), [want], rtol=1e-6)


def test_cross_entropy_takes_classes_and_distributions():
    y = jnp.arange(6) % 8
    want = -np.log(softmax(np.asarray(S[:, 0], np.float64)))[np.arange(6), y]
    np.testing.assert_allclose(jax.jit(m.cross_entropy)(S[:, 0], y), want, rtol=1e-5)
    hot = jax.nn.one_hot(y, 8)
    np.testing.assert_allclose(jax.jit(m.cross_entropy)(S[:, 0], hot), want, rtol=1e-5)


def unit(a, axis):
    return a / np.sqrt((a**2).sum(axis, keepdims=True))


def gram_reference(s, t):
    first, second = (
        unit(a.reshape(len(a), -1) @ a.reshape(len(a), -1).T, 1) for a in (s, t)
    )
    return ((first - second) ** 2).sum() / len(s) ** 2


def cka_reference(s, t):
    """By the features' cross-covariances, and not by the examples' kernels."""
    x, y = (a.reshape(len(a), -1) for a in (s, t))
    x, y = x - x.mean(0), y - y.mean(0)
    cross = ((y.T @ x) ** 2).sum()
    return 1 - cross / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum())


def map_reference(s, t):
    """One example and one position at a time."""
    total = 0.0
    for a, b in zip(s, t, strict=True):
        first, second = ([(row**2).sum() for row in x] for x in (a, b))
        first, second = (np.array(q) / np.linalg.norm(q) for q in (first, second))
        total += np.linalg.norm(first - second) ** 2
    return total / len(s)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("mse", lambda s, t: np.mean((s - t) ** 2)),
        ("relative", lambda s, t: np.sum((s - t) ** 2) / np.sum(t**2)),
        ("gram", gram_reference),
        ("cka", cka_reference),
        ("map", map_reference),
    ],
)
def test_losses_of_features_are_those_of_their_papers(loss, reference):
    got = matched(Match(loss=loss), S, T)
    want = reference(np.asarray(S, np.float64), np.asarray(T, np.float64))
    np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize("loss", ["gram", "cka", "map"])
def test_losses_without_width_compare_other_widths_and_take_axes(loss):
    narrow = S[..., :3]
    wanted = {"gram": gram_reference, "cka": cka_reference, "map": map_reference}[loss]
    want = wanted(np.asarray(narrow, np.float64), np.asarray(T, np.float64))
    np.testing.assert_allclose(matched(Match(loss=loss), narrow, T), want, rtol=2e-5)
    moved = [np.moveaxis(a, (0, 1, 2), (1, 2, 0)) for a in map(np.asarray, (narrow, T))]
    got = matched(Match(loss=loss, axis=0, batch=1), *moved)
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_attention_rows_diverge_and_heads_are_averaged_where_their_numbers_differ():
    q, p = (
        softmax(np.asarray(normal(2, 4, 3, 3))),
        softmax(np.asarray(normal(2, 2, 3, 3))),
    )
    same = matched(Match(loss="rows"), q, q[:, ::-1])
    np.testing.assert_allclose(same, divergence(q[:, ::-1], q).mean(), rtol=1e-5)
    want = divergence(p.mean(1), q.mean(1)).mean()
    np.testing.assert_allclose(matched(Match(loss="rows"), q, p), want, rtol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "relative", "gram", "cka", "map", "rows"])
def test_equal_values_cost_exactly_nothing_and_pull_nowhere(loss):
    match, s = Match(loss=loss), jax.nn.softmax(S[:, None])
    t = jax.nn.softmax(T[:, None])
    run = jax.jit(jax.value_and_grad(lambda a, b: match(a, b, "a")))
    value, gradient = run(jnp.zeros_like(s), t)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    value, gradient = run(s, s)
    assert value == 0
    assert not gradient.any()
    half = jax.eval_shape(run, s.astype(jnp.bfloat16), t.astype(jnp.bfloat16))
    assert half[0].dtype == jnp.float32


@pytest.mark.torch
def test_losses_are_those_that_are_written_in_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    s, t = (torch.tensor(np.array(a), dtype=torch.float64) for a in (S, T))
    soft = functional.kl_div(
        functional.log_softmax(s / 3, -1),
        functional.softmax(t / 3, -1),
        reduction="none",
    )
    np.testing.assert_allclose(soft_targets(S, T, 3.0), 9 * soft.sum(-1), rtol=1e-5)

    def at(x):
        return functional.normalize(x.pow(2).mean(-1).view(x.size(0), -1))

    maps = (at(s) - at(t)).pow(2).sum(-1).mean()
    np.testing.assert_allclose(matched(Match(loss="map"), S, T), maps, rtol=1e-5)

    def similar(x):
        flat = x.view(x.size(0), -1)
        return functional.normalize(torch.mm(flat, flat.t()))

    grams = (similar(s) - similar(t)).pow(2).mean()
    np.testing.assert_allclose(matched(Match(loss="gram"), S, T), grams, rtol=1e-5)
    near = functional.mse_loss(s, t)
    np.testing.assert_allclose(matched(Match(loss="mse"), S, T), near, rtol=1e-5)


# -- values inside programs ----------------------------------------------------------


def values(program, paths, *inputs):
    """What is tapped, with the outputs as they are without."""
    taps = tap(program, paths)

    @jax.jit
    def both(variables, *inputs):
        return taps(variables, *inputs), program.function(variables, *inputs)

    (outputs, found), want = both(program.variables, *inputs)
    np.testing.assert_allclose(outputs, want, rtol=1e-6, atol=1e-6)
    return jax.tree.map(np.asarray, found)


def filled(init, *inputs, seed=3):
    """Variables of these shapes, nothing of them run."""
    random = np.random.default_rng(seed)

    def fill(spec):
        drawn = random.uniform(0.1, 0.9, spec.shape) * random.choice(
            [-1, 1], spec.shape
        )
        return jnp.asarray(np.abs(drawn) if spec.ndim == 1 else drawn, spec.dtype)

    specs, rest = eqx.partition(
        eqx.filter_eval_shape(init, *inputs),
        lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct),
    )
    return eqx.combine(jax.tree.map(fill, specs), rest)


KEY = jax.random.key(0)


class Net(nn.Module):
    """Two names for each depth, and statistics."""

    width: int = 8
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(self.width, name="first")(x))
        x = nn.BatchNorm(not train, name="norm")(x)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        x = nn.tanh(nn.Dense(6, name="second")(x))
        return nn.Dense(3, name="head")(x)


def linen(x, **fields):
    module = Net(**fields)
    return module, filled(module.init, KEY, x)


def test_taps_of_linen_are_what_it_captures_itself_at_every_batch_size():
    x = normal(2, 8)
    module, variables = linen(x)
    program = mc.trace(module.apply, variables, normal(4, 8))
    run = functools.partial(
        module.apply, capture_intermediates=True, mutable=["intermediates"]
    )
    seen = jax.jit(run)(variables, x)[1]["intermediates"]
    want = {k: v["__call__"][0] for k, v in seen.items() if k != "__call__"}
    found = values(program, "*", x)
    assert found.keys() == want.keys() - {"Dropout_0"}  # which does nothing here
    for path, value in found.items():
        np.testing.assert_allclose(value, want[path], rtol=2e-5, atol=1e-6)


def test_taps_of_haiku_are_what_its_modules_return():
    seen = {}

    def keep(next_function, arguments, named, context):
        seen[context.module.module_name] = next_function(*arguments, **named)
        return seen[context.module.module_name]

    def forward(x):
        with hk.intercept_methods(keep):
            return hk.nets.MLP([8, 4], name="mlp")(hk.LayerNorm(-1, True, True)(x))

    model, x = hk.without_apply_rng(hk.transform(forward)), normal(3, 6)
    params = filled(model.init, KEY, x)
    program = mc.trace(model.apply, params, x)

    @jax.jit
    def run(params):
        model.apply(params, x)
        return {path.replace("/~", ""): value for path, value in seen.items()}

    seen.clear()
    seen = run(params)
    found = values(program, list(seen), x)
    for path, value in seen.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5)


def test_taps_of_equinox_and_nnx_follow_the_parameters():
    model = filled(lambda key: eqx.nn.MLP(4, 3, 8, 1, key=key), KEY)
    x = normal(5, 4)
    program = mc.trace(lambda m, x: jax.vmap(m)(x), model, x)
    first = model.layers[0]
    hidden = np.maximum(
        np.asarray(x) @ np.asarray(first.weight).T + np.asarray(first.bias), 0
    )
    found = values(program, ["layers/0"], x)
    np.testing.assert_allclose(found["layers/0"], hidden, rtol=1e-5)

    graph, state = nnx.split(nnx.Linear(4, 6, rngs=nnx.Rngs(0)))

    def net(state, x):
        return nnx.relu(nnx.merge(graph, state["first"])(x))

    program = mc.trace(net, {"first": state}, x)
    want = np.maximum(np.asarray(x) @ np.asarray(state["kernel"][...]), 0)
    np.testing.assert_allclose(values(program, "first", x)["first"], want, rtol=1e-5)


W, X = normal(3, 4, 4) / 2, normal(2, 4)


def looped(w, x, wrap=lambda f: f):
    def step(h, w):
        with jax.named_scope("layer"):
            with jax.named_scope("inner"):
                y = h @ w
            h = jnp.tanh(y)
        return h * 2.0, None

    return jax.lax.scan(wrap(step), x, w)[0]


def unrolled(w, x):
    rows = []
    for one in w:
        rows.append(x @ one)
        x = jnp.tanh(rows[-1]) * 2.0
    return jnp.stack(rows)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit])
def test_inside_a_scan_values_are_stacked_and_differentiated(wrap):
    program = mc.trace(lambda w, x: looped(w, x, wrap), W, X)
    taps = tap(program, ["layer", "layer/inner"])
    found, inner = jax.jit(lambda w: (taps(w, X)[1], unrolled(w, X)))(W)
    np.testing.assert_allclose(found["layer/inner"], inner, rtol=1e-5)
    np.testing.assert_allclose(found["layer"], np.tanh(inner), rtol=1e-5)
    got = jax.jit(jax.grad(lambda w: (taps(w, X)[1]["layer/inner"] ** 3).sum()))(W)
    want = jax.jit(jax.grad(lambda w: (unrolled(w, X) ** 3).sum()))(W)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    kept = {e.primitive.name for e, _ in jaxprs.nested(jax.make_jaxpr(taps)(W, X))}
    assert ("remat2" in kept) == (wrap is jax.checkpoint)


def test_a_while_gives_its_last_turn_and_a_branch_not_taken_zeros():
    def net(w, x):
        def turn(carry):
            with jax.named_scope("turn"):
                y = carry[1] @ w
            return carry[0] + 1, jnp.tanh(y)

        def first(x):
            with jax.named_scope("first"):
                y = x @ w
            return y * 3.0

        _, x = jax.lax.while_loop(lambda c: c[0] < 3, turn, (0, x))
        return jax.lax.cond(x.sum() > 1e9, first, jnp.sin, x)

    program = mc.trace(net, W[0], X)
    found = values(program, ["turn", "first"], X)
    w, x = np.asarray(W[0]), np.asarray(X)
    want = np.tanh(np.tanh(x @ w) @ w) @ w
    np.testing.assert_allclose(found["turn"], want, rtol=1e-5)
    assert not found["first"].any()
    assert found["first"].shape == X.shape
    mapped = jax.vmap(lambda x: tap(program, "turn")(W[0], x[None])[1]["turn"][0])
    np.testing.assert_allclose(jax.jit(mapped)(X), want, rtol=1e-5)


def test_a_rule_of_ones_own_for_derivatives_holds():
    @jax.custom_vjp
    def twice(x):
        with jax.named_scope("inside"):
            y = x * 2.0
        with jax.named_scope("last"):
            return y + 0.5

    twice.defvjp(lambda x: (twice(x), None), lambda _, g: (7.0 * g,))

    def net(w, x):
        with jax.named_scope("outer"):
            y = twice(x @ w)
        return jnp.sin(y)

    program = mc.trace(net, W[0], X)
    taps = tap(program, ["outer", "outer/inside", "outer/last"])

    @jax.jit
    def gradients(w):
        found = {
            p: jax.grad(lambda w, p=p: taps(w, X)[1][p].sum())(w) for p in taps.paths
        }
        whole = jax.grad(lambda w: taps(w, X)[0].sum())(w)
        return found, whole, jax.grad(lambda w: net(w, X).sum())(w)

    found, whole, want = gradients(W[0])
    plain = np.broadcast_to(np.asarray(X).sum(0)[:, None], (4, 4))
    np.testing.assert_allclose(found["outer"], 7.0 * plain, rtol=1e-5)
    np.testing.assert_allclose(found["outer/last"], 7.0 * plain, rtol=1e-5)
    np.testing.assert_allclose(found["outer/inside"], 2.0 * plain, rtol=1e-5)
    np.testing.assert_allclose(whole, want, rtol=1e-6)


class Attending(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(x)
        return nn.Dense(3, name="head")(x)


def test_attention_is_found_as_the_softmax_of_its_module():
    module, x = Attending(), normal(2, 6, 8)
    variables = filled(module.init, KEY, x)
    program = mc.trace(module.apply, variables, x)
    own = variables["params"]["attention"]
    own, inputs = jax.tree.map(np.asarray, own), np.asarray(x)
    q, k = (
        np.einsum("bti,ihd->bthd", inputs, own[n]["kernel"]) + own[n]["bias"]
        for n in ("query", "key")
    )
    want = softmax(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(2.0))
    assert tap(program, "*:softmax").paths == ("attention:softmax",)
    found = values(program, ["attention:softmax", "attention:dot_general"], x)
    np.testing.assert_allclose(found["attention:softmax"], want, rtol=2e-5)
    last = found["attention:dot_general"]
    assert last.shape == x.shape  # that of the projection, which comes last


def test_the_gradient_in_a_training_step_is_not_taken_for_its_forward_pass():
    def net(w, x):
        with jax.named_scope("hidden"):
            y = jnp.tanh(x @ w)
        return y.sum()

    program = mc.trace(lambda w, x: jax.grad(net)(w, x), W[0], X)
    found = values(program, "hidden", X)["hidden"]
    assert found.shape == X.shape
    assert not np.allclose(found, 0)


def test_paths_that_name_nothing_are_told_the_nearest():
    program = mc.trace(looped, W, X)
    with pytest.raises(UnknownPathError, match=r"iner.*nearest there are: layer/inn"):
        tap(program, "layer/iner")
    with pytest.raises(UnknownPathError, match="found none of that kind"):
        tap(program, "layer:conv")
    with pytest.raises(DistillError, match="expected a program, got function"):
        tap(looped, "layer")


def test_a_value_of_one_device_is_not_handed_out():
    mesh = jax.sharding.Mesh(jax.devices()[:1], "d")
    spec = jax.sharding.PartitionSpec("d")

    def part(x):
        with jax.named_scope("inside"):
            y = x * 3.0
        return jnp.sin(y)

    sharded = jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec)
    program = mc.trace(lambda w, x: sharded(x) @ w, W[0], X)
    with pytest.raises(TapError, match=r"inside: .*is inside a shard_map"):
        tap(program, "inside")(W[0], X)


# -- the loss as a mapping -----------------------------------------------------------


def hidden(w, x):
    tanh = np.tanh if isinstance(x, np.ndarray) else jnp.tanh
    return tanh(x @ w["hidden"]["kernel"] + w["hidden"]["bias"][None])


def layered(w, x):
    return hidden(w, x) @ w["head"]["kernel"]


def layers(width, seed=0):
    return {
        "hidden": {"kernel": normal(8, width, seed=seed), "bias": normal(width)},
        "head": {"kernel": normal(width, 3, seed=seed + 1)},
    }


INPUTS, LABELS = normal(10, 8), jnp.arange(10) % 3
TEACHER = mc.trace(layered, layers(6), INPUTS)
STUDENT = TEACHER.with_variables(layers(6, seed=5))


@functools.partial(jax.jit, static_argnums=0)
def gradient(loss, variables, *inputs):
    def run(params):
        now = Variables(params, variables.state)
        return loss.apply(now, *inputs, ctx=Context())[0]

    return jax.value_and_grad(run)(variables.params)


def begun(*arguments, inputs=(INPUTS,), **options):
    loss = distill(*arguments, **options)
    return loss, loss.init(jax.random.key(0), *inputs)


def test_the_loss_is_the_sum_of_its_terms():
    match = Match(weight=0.25)
    loss, v = begun(
        TEACHER, STUDENT, features={"hidden": match}, temperature=3.0, alpha=0.7
    )
    own, other, x = (
        *jax.tree.map(np.asarray, (layers(6, seed=5), layers(6))),
        np.asarray(INPUTS),
    )
    s, t = layered(own, x), layered(other, x)
    p, q = softmax(np.asarray(t) / 3), softmax(np.asarray(s) / 3)
    soft = 9 * divergence(p, q).mean()
    near = np.mean((hidden(own, x) - hidden(other, x)) ** 2)
    task = -np.log(softmax(np.asarray(s)))[np.arange(10), LABELS].mean()
    got, _ = gradient(loss, v, INPUTS, LABELS)
    np.testing.assert_allclose(got, 0.3 * task + 0.7 * soft + near / 4, rtol=2e-5)
    run = jax.jit(lambda v, *i: loss.terms(v, *i, ctx=Context())[0])
    terms = run(v, INPUTS)
    assert set(terms) == {"logits", "hidden"}  # without labels alpha counts as 1
    np.testing.assert_allclose(terms["logits"], soft, rtol=2e-5)
    weights = jnp.zeros(10).at[2].set(3.0)
    terms = run(v, INPUTS, (LABELS, weights))
    np.testing.assert_allclose(
        terms["logits"], 0.7 * 9 * divergence(p, q)[2], rtol=2e-5
    )


def test_a_student_like_its_teacher_costs_exactly_nothing_and_does_not_move():
    losses = ("mse", "relative", "gram", "cka", "map")
    paths = ("hidden", "hidden:dot_general", "hidden:tanh", "head", ":tanh")
    features = {p: Match(loss=n) for p, n in zip(paths, losses, strict=True)}
    loss, v = begun(TEACHER, TEACHER, features=features)
    value, moves = gradient(loss, v, INPUTS)
    assert value == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(moves))


def test_gradients_reach_the_student_and_never_the_teacher():
    loss, v = begun(TEACHER, STUDENT, features=["hidden"])
    assert set(v.params) == {"student"}
    assert set(v.state) == {"teacher"}
    moves = jax.jit(jax.grad(lambda v: loss.apply(v, INPUTS, ctx=Context())[0]))(v)
    assert all(leaf.any() for leaf in jax.tree.leaves(moves.params))
    assert not any(leaf.any() for leaf in jax.tree.leaves(moves.state))
    constants = jax.make_jaxpr(lambda v: loss.apply(v, INPUTS, ctx=Context()))(v).consts
    assert sum(np.size(c) for c in constants) <= INPUTS.size  # the arrays are arguments


def test_a_narrower_student_is_compared_through_a_projection_that_learns():
    student = mc.trace(layered, layers(4, seed=5), INPUTS)
    loss, v = begun(TEACHER, student, features=["hidden"], logits=False)
    kernel = v.params["projections"]["hidden"]["kernel"]
    assert kernel.shape == (4, 6)
    s, t = hidden(layers(4, seed=5), INPUTS) @ kernel, hidden(layers(6), INPUTS)
    value, moves = gradient(loss, v, INPUTS)
    np.testing.assert_allclose(value, np.mean((s - t) ** 2), rtol=1e-5)
    assert moves["projections"]["hidden"]["kernel"].any()
    assert loss.variables(v)["hidden"]["kernel"].shape == (8, 4)
    bare = Variables({"student": v.params["student"]}, v.state)
    with pytest.raises(DistillError, match="hidden: expected a projection from 4 to 6"):
        loss.apply(bare, INPUTS, ctx=Context())


@dataclasses.dataclass(frozen=True)
class Cut(mc.Pass):
    """Removes hidden units, as a plan says."""

    plan: Plan

    def rewrite(self, graph):
        raise NotImplementedError


def narrowed(indices):
    full = layers(6)
    return {
        "hidden": {n: a[..., indices] for n, a in full["hidden"].items()},
        "head": {"kernel": full["head"]["kernel"][indices]},
    }


def test_of_a_pruned_student_the_features_that_were_kept_are_compared():
    indices = np.array([0, 2, 5])
    small = mc.trace(layered, narrowed(indices), INPUTS)
    loss, v = begun(
        TEACHER, small, features=["hidden"], kept={"hidden": indices}, logits=False
    )
    assert "projections" not in v.params
    value, moves = gradient(loss, v, INPUTS)
    assert value == 0
    assert not moves["student"]["hidden"]["kernel"].any()
    with pytest.raises(DistillError, match="hidden: expected 3 kept indices below 6"):
        begun(TEACHER, small, features=["hidden"], kept={"hidden": [0, 6, 1]})


def test_its_history_tells_which_were_kept_through_two_prunings():
    shapes = {leaf.path: leaf.spec.shape for leaf in TEACHER.graph.leaves}
    first = Plan.of({"hidden/bias": {0: [1]}, "hidden/kernel": {1: [1]}}, shapes)
    shapes |= {p: first.shape(p) for p in ("hidden/bias", "hidden/kernel")}
    second = Plan.of({"hidden/bias": {0: [2, 3]}, "hidden/kernel": {1: [2, 3]}}, shapes)
    small = mc.trace(layered, narrowed(np.array([0, 2, 5])), INPUTS)
    steps = [Applied(Cut(plan), Events(), ()) for plan in (first, second)]
    small = dataclasses.replace(small, history=tuple(steps))
    loss, v = begun(TEACHER, small, features=["hidden"], logits=False)
    assert gradient(loss, v, INPUTS)[0] == 0


def test_steps_of_a_loop_are_compared_with_those_of_a_longer_one():
    teacher, student = (mc.trace(looped, w, X) for w in (W, W[::2]))
    match = Match(steps=(0, 2))
    loss, v = begun(
        teacher, student, features={"layer": match}, logits=False, inputs=(X,)
    )
    t, s = jax.jit(lambda w: (unrolled(w, X), unrolled(w[::2], X)))(W)
    want = np.mean((np.tanh(t[::2]) - np.tanh(s)) ** 2)
    np.testing.assert_allclose(gradient(loss, v, X)[0], want, rtol=1e-5)


def test_attention_is_compared_by_its_rows():
    module, x = Attending(), normal(2, 6, 8)
    teacher = mc.trace(module.apply, filled(module.init, KEY, x), x)
    student = teacher.with_variables(filled(module.init, KEY, x, seed=4))
    loss, v = begun(
        teacher, student, attention=["attention"], logits=False, inputs=(x,)
    )
    q, p = (
        np.asarray(values(a, "attention:softmax", x)["attention:softmax"])
        for a in (student, teacher)
    )
    got, _ = gradient(loss, v, x)
    np.testing.assert_allclose(got, divergence(p, q).mean(), rtol=1e-4)


def test_statistics_come_back_and_units_are_dropped_anew():
    module, variables = linen(INPUTS, rate=0.5)

    def train(v, x, key):
        mutable, rngs = ["batch_stats"], {"dropout": key}
        return module.apply(v, x, train=True, mutable=mutable, rngs=rngs)

    key = jax.random.key(1)
    teacher = mc.trace(module.apply, variables, INPUTS)
    student = mc.trace(train, variables, INPUTS, key)
    loss, v = begun(teacher, student, features=["second"])
    assert "batch_stats" not in v.params["student"]
    ctx = Context(key, train=True)
    run = jax.jit(lambda v, ctx: loss.apply(v, INPUTS, ctx=ctx))
    value, state = run(v, ctx)
    moved = jax.jit(train)(variables, INPUTS, key)[1]["batch_stats"]["norm"]
    for name in ("mean", "var"):
        got = state["student"]["batch_stats"]["norm"][name]
        np.testing.assert_allclose(got, moved[name], rtol=1e-5)
    assert run(v, Context(jax.random.key(2), train=True))[0] != value
    after = loss.program(Variables(v.params, state)).variables["batch_stats"]
    np.testing.assert_allclose(after["norm"]["mean"], moved["mean"], rtol=1e-5)


@pytest.mark.parametrize("returned", [nnx.BatchStat, ...])
def test_of_what_nnx_returns_the_statistics_are_state_and_the_rest_is_trained(returned):
    norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    graph, state = nnx.split(norm)

    def run(state, x):
        norm = nnx.merge(graph, state["norm"])
        return norm(x), nnx.state(norm, returned)

    student = mc.trace(run, {"norm": state}, INPUTS)
    loss, v = begun(student, student)
    assert v.params["student"]["norm"].keys() == {"bias", "scale"}
    assert v.state["student"]["norm"].keys() == {"mean", "var"}
    after = jax.jit(lambda v: loss.apply(v, INPUTS, ctx=Context(train=True)))(v)[1]
    mean = 0.01 * np.asarray(INPUTS).mean(0)
    got = after["student"]["norm"]["mean"]["value"]
    np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-7)


def test_a_mapping_in_training_is_a_student_as_it_is_and_as_a_program():
    net = mp.Serial(
        first=mp.layers.Dense(6), norm=mp.layers.BatchNorm(), head=mp.layers.Dense(3)
    )
    v = net.init(jax.random.key(0), INPUTS)
    teacher = mc.trace(net, v, INPUTS)
    traced = mc.trace(net, v, INPUTS, ctx=Context(train=True))
    ctx, states = Context(jax.random.key(0), train=True), []
    for student in (traced, net):
        loss, own = begun(teacher, student, features={"first": "first"})
        run = jax.jit(lambda v, loss=loss: loss.apply(v, INPUTS, LABELS, ctx=ctx))
        value, state = run(own)
        assert np.isfinite(value)
        states.append(state["student"])
    # Where a mapping starts is its own affair; what its statistics are is the inputs'.
    assert jax.tree.structure(states[0]["state"]) == jax.tree.structure(states[1])
    assert states[0]["state"]["norm"]["mean"].any()


def test_fit_and_a_loop_of_optax_train_it():
    loss, v = begun(TEACHER, STUDENT, features=["hidden"])
    batch = (np.asarray(INPUTS), np.asarray(LABELS))
    fitted = mp.train.fit(
        loss.model, batch, loss=loss.objective, optimizer=optax.adam(0.03), epochs=40,
        batch_size=10, validation=batch, metrics={"accuracy": mp.metrics.Accuracy()},
    )  # fmt: skip
    first, last = fitted.history.rows[0], fitted.history.rows[-1]
    assert last["loss"] < first["loss"] / 3
    np.testing.assert_allclose(first["loss"], gradient(loss, v, *batch)[0], rtol=1e-5)
    student = loss.program(fitted.variables)
    right = (np.asarray(student(INPUTS)).argmax(-1) == np.asarray(LABELS)).mean()
    np.testing.assert_allclose(last["accuracy"], right, rtol=1e-6)

    optimizer, params = optax.adam(0.03), v.params
    moments = optimizer.init(params)

    @jax.jit
    def step(params, moments):
        value, moves = gradient(loss, Variables(params, v.state), INPUTS, LABELS)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(moves, moments)
        return optax.apply_updates(params, updates), moments, value

    for _ in range(40):
        params, moments, value = step(params, moments)
    np.testing.assert_allclose(value, last["loss"], rtol=1e-2)


# -- rewriting and teaching in one call ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Zeroed(mc.Pass):
    """Sets the smallest numbers of each kernel to zero: as bad as pruning can be."""

    share: float

    def rewrite(self, graph):
        def prepare(leaves):
            return [
                jnp.where(jnp.abs(a) < jnp.quantile(jnp.abs(a), self.share), 0, a)
                if leaf.path.endswith("kernel")
                else a
                for leaf, a in zip(graph.leaves, leaves, strict=True)
            ]

        return mc.Rewrite(graph, prepare)


@functools.cache
def digits_program():
    return mc.trace(mlp, trained(), data()[0][:4])


def accuracy(program):
    _, _, x, y = data()
    return float((np.asarray(program(x)).argmax(-1) == y).mean())


def batches(labels=True):
    x, y, _, _ = data()
    cut = [slice(i, i + 300) for i in range(0, 1500, 300)]
    return [(x[c], y[c]) if labels else x[c] for c in cut]


def test_a_network_that_lost_most_of_its_weights_is_taught_again_and_they_stay_lost():
    program = digits_program()
    worse = program >> Zeroed(0.85)
    better, history = recover(
        program, Zeroed(0.85), batches(), optimizer=1e-2, steps=80, keep_zeros=True
    )
    assert accuracy(worse) < accuracy(program) - 0.1
    assert accuracy(better) > accuracy(program) - 0.02
    for before, after in zip(worse.values, better.values, strict=True):
        assert not np.asarray(after)[np.asarray(before) == 0].any()
    assert len(history) == 80
    assert history[0].keys() == {"step", "loss", "task", "logits"}
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert better.recipe == (Zeroed(0.85),)


def test_any_pass_will_do_and_no_labels_are_needed():
    program = digits_program()
    step = mc.low_rank(rank=3)
    better, history = recover(
        program, step, batches(False), optimizer=mp.optimizers.adam(3e-3), steps=40,
        features={"second": Match(weight=0.01)},
    )  # fmt: skip
    assert better.size < program.size / 3
    assert accuracy(better) > accuracy(program >> step) + 0.05
    assert history[0].keys() == {"step", "loss", "logits", "second"}


def test_what_is_rounded_learns_with_what_is_left_to_train():
    program = digits_program()
    step, rows = mc.quantize.weights("int4"), []
    better, _ = recover(program, step, batches(False)[:1], steps=3, log=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3]
    before = program >> step
    moved = {"float": [], "integer": []}
    for a, b in zip(before.values, better.values, strict=True):
        kind = "integer" if jnp.issubdtype(a.dtype, jnp.integer) else "float"
        moved[kind].append(not np.array_equal(a, b))
    assert all(moved["float"])
    assert moved["integer"]
    assert not any(moved["integer"])


def test_an_iterative_schedule_calls_it_back():
    tuner = fine_tuner(digits_program(), batches(), steps=2)
    program = digits_program() >> Zeroed(0.5)
    assert accuracy(tuner(program, 1)) > accuracy(program) - 0.1
    assert tuner(program).recipe == (Zeroed(0.5),)


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: distill(TEACHER, layered),
            "student: expected a program, got function",
        ),
        (
            lambda: distill(mp.layers.Dense(3), TEACHER),
            "teacher: expected a program, got",
        ),
        (
            lambda: distill(layered, TEACHER, features=["hidden"]),
            "teacher: expected a program, inside of which there is hidden",
        ),
        (lambda: distill(TEACHER, TEACHER, temperature=0), "temperature: expected a"),
        (lambda: distill(TEACHER, TEACHER, alpha=2), "alpha: expected a share in"),
        (lambda: Match(loss="l2"), "Match.loss: expected one of mse"),
        (lambda: Match(weight=-1.0), "Match.weight: expected a number >= 0"),
        (
            lambda: begun(TEACHER, TEACHER, inputs=(INPUTS, LABELS, LABELS)),
            "expected 1 inputs, or these and the labels, got 3",
        ),
        (
            lambda: begun(TEACHER, TEACHER, features={"hidden": Match(steps=(0, 1))}),
            "hidden: expected values that differ in features alone",
        ),
        (lambda: fine_tune(STUDENT, TEACHER, []), "batches: expected 100 of them"),
        (lambda: fine_tune(STUDENT, TEACHER, [INPUTS], steps=0), "steps: expected"),
        (
            lambda: fine_tune(STUDENT, TEACHER, iter([INPUTS]), steps=3),
            "batches: expected 3 of them, or a list to go through again, got 1",
        ),
        (
            lambda: fine_tune(STUDENT, TEACHER, [INPUTS], optimizer="adam"),
            "optimizer: expected an optax transform or a rate, got str",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(DistillError, match=message):
        make()
