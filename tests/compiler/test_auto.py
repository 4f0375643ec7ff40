"""Bits by sensitivity: what is predicted, what is chosen, and that it is better."""

import builtins
import dataclasses
import functools
import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from sklearn.datasets import load_digits
from zoo import normal

import compiler as mc
from compiler.errors import (
    BudgetError,
    CalibrationError,
    MissingExtraError,
    VariablesMismatchError,
)
from compiler.passes.quantize import coverage, weights
from compiler.passes.quantize.mixed import timing
from compiler.passes.quantize.mixed.auto import QuantizeAuto, auto
from compiler.passes.quantize.mixed.budget import Option, least_harm
from compiler.passes.quantize.mixed.sensitivity import candidates, sensitivity
from compiler.passes.quantize.mixed.timing import Latency, latency
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme
from mapping import from_config, to_config

# Without a search for their range they compile much faster.
EIGHT = Scheme("int8")
FOUR = Scheme("int4", group=32, clip="max")
TWO = Scheme("int2", group=32, clip="max")
COARSE = [EIGHT, FOUR]


def entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def squared(y, target):
    return ((y - target) ** 2).mean()


def mlp(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


@functools.cache
def digits():
    """An MLP trained on digits, batches of its data, and data it has not seen."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = jnp.asarray(data.data[order] / 16.0, jnp.float32)
    y = jnp.asarray(data.target[order], jnp.int32)
    params = [
        {"w": normal(a, b, seed=i) * (2 / a) ** 0.5, "b": jnp.zeros((1, b))}
        for i, (a, b) in enumerate(itertools.pairwise((64, 64, 64, 64, 10)))
    ]
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 300))

    def step(state, places):
        params, moments = state
        gradient = jax.grad(lambda p: entropy(mlp(p, x[places]), y[places]))(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), None

    places = jax.random.randint(jax.random.key(0), (300, 64), 0, 1400)
    state = (params, optimizer.init(params))
    with jax.numpy_dtype_promotion("standard"):  # optax counts on it
        params = jax.jit(lambda s: jax.lax.scan(step, s, places)[0][0])(state)
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]
    return mc.trace(mlp, params, x[:64]), batches, [(x[1400:], y[1400:])]


def mean_loss(program, batches):
    return float(np.mean([float(entropy(program(x), y)) for x, y in batches]))


@functools.cache
def measured():
    program, batches, _ = digits()
    return sensitivity(program, entropy, batches, [EIGHT, FOUR, "nf4", TWO])


# --- what is predicted ---------------------------------------------------------


def test_the_second_order_is_the_curvature_along_the_error_of_each_weight():
    program, batches, _ = digits()
    x, y = (jnp.concatenate(arrays) for arrays in zip(*batches, strict=True))
    loss = jax.jit(lambda v: entropy(program.function(v, x), y))
    ratios = []
    for path, own in candidates(program.graph, [FOUR], ()).items():
        place = program.graph.paths.index(path)
        weight = program.values[place]
        error = own[FOUR].decode(own[FOUR].encode(weight)) - weight

        def at(moved, place=place):
            values = list(program.values)
            values[place] = moved
            return float(loss(program.graph.pack(values)))

        rise = 0.5 * (at(weight + error) + at(weight - error)) - at(weight)
        (found,) = (e for e in measured()[path] if e.scheme == FOUR)
        ratios.append(found.second / rise)
    # Of the Hessian it knows the diagonal; the last layer's is far from diagonal.
    assert all(0.25 < ratio < 2 for ratio in ratios), ratios
    assert 0.5 < np.exp(np.mean(np.log(ratios))) < 2


def test_where_gradients_vanish_the_rise_of_a_linear_model_is_exact():
    basis = jnp.linalg.qr(normal(64, 64))[0]  # so the Hessian is diagonal
    w = normal(64, 64, seed=1)
    program = mc.trace(lambda v, x: x @ v["w"], {"w": w}, basis)
    found = sensitivity(program, squared, [(basis, program(basis))], COARSE)
    for effect in found["w"]:
        code = Encoding(effect.scheme, w.shape, "float32", (0,))
        error = code.decode(code.encode(w)) - w
        expected = squared(basis @ (w + error), basis @ w)
        np.testing.assert_allclose(effect.rise, expected, rtol=1e-4)


def test_the_fisher_matrix_of_a_logistic_model_is_scaled_to_its_hessian():
    x, w = normal(512, 64), 0.2 * normal(64, 10, seed=1)
    noise = np.random.default_rng(0).gumbel(size=(512, 10))
    labels = jnp.asarray((np.asarray(x @ w) + noise).argmax(-1), jnp.int32)
    program = mc.trace(lambda v, x: x @ v["w"], {"w": w}, x)
    batches = [(x[i : i + 32], labels[i : i + 32]) for i in range(0, 512, 32)]
    (effect,) = sensitivity(program, entropy, batches, [FOUR])["w"]
    code = Encoding(effect.scheme, w.shape, "float32", (0,))
    error = np.asarray(code.decode(code.encode(w)) - w)
    share = np.asarray(jax.nn.softmax(x @ w))
    # The Hessian's diagonal at (i, c) is the mean of x_i^2 p_c (1 - p_c).
    diagonal = np.asarray(x).T ** 2 @ (share * (1 - share)) / len(x)
    np.testing.assert_allclose(
        effect.second, 0.5 * (diagonal * error**2).sum(), rtol=0.2
    )
    gradient = np.asarray(x).T @ (share - np.eye(10)[np.asarray(labels)]) / len(x)
    np.testing.assert_allclose(effect.first, (gradient * error).sum(), rtol=1e-3)


def test_only_what_exceeds_chance_counts_of_the_first_order():
    for effect in measured().effects:
        assert effect.second <= effect.rise <= abs(effect.first) + effect.second
    assert any(e.rise == e.second != 0 != e.first for e in measured().effects)


def test_a_table_lists_the_most_sensitive_first():
    found = measured()
    worst = [max(e.rise for e in found[path]) for path in found.paths]
    assert worst == sorted(worst, reverse=True)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(found.paths)
    assert str(FOUR) in lines[1]
    assert found.as_rows()[0]["scheme"] == "int8"
    with pytest.raises(KeyError, match="not measured"):
        found["no/such"]


def test_a_weight_that_gets_no_gradient_has_no_rise_and_the_fewest_bits():
    values = {"a": normal(64, 64), "b": normal(64, 64, seed=1)}

    def f(v, x):
        return x @ v["a"] + 0.0 * jax.lax.stop_gradient(x @ v["b"])

    x = normal(8, 64)
    program = mc.trace(f, values, x)
    found = sensitivity(program, squared, [(x, x)], COARSE)
    assert [effect.rise for effect in found["b"]] == [0.0, 0.0]
    assert all(effect.rise > 0 for effect in found["a"])
    chosen = auto(0.22, batches=found, schemes=COARSE).decide(program).chosen
    assert {path: s.dtype for path, s, _ in chosen} == {"a": "int8", "b": "int4"}


# --- what is chosen ------------------------------------------------------------

OPTIONS = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 50)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(OPTIONS, st.integers(0, 120))
def test_the_choice_is_the_best_of_all(sizes, budget):
    options = {
        str(number): [Option(i, float(c), float(h)) for i, (c, h) in enumerate(own)]
        for number, own in enumerate(sizes)
    }
    found = least_harm(options, budget)
    sums = [
        (sum(o.harm for o in one), sum(o.cost for o in one))
        for one in itertools.product(*options.values())
    ]
    allowed = [(harm, cost) for harm, cost in sums if cost <= budget]
    if not allowed:
        assert found is None
        return
    assert list(found) == list(options)
    got = (sum(o.harm for o in found.values()), sum(o.cost for o in found.values()))
    assert got == min(allowed)


def test_many_weights_are_within_the_budget_and_near_the_best():
    random = np.random.default_rng(0)
    options = {
        str(i): [
            Option(bits, float(bits * size), float(weight * 4.0**-bits))
            for bits in (2, 4, 8, 16)
        ]
        for i, (size, weight) in enumerate(
            zip(random.uniform(1, 100, 60), random.lognormal(0, 2, 60), strict=True)
        )
    }
    budget = 0.4 * sum(own[-1].cost for own in options.values())
    found = least_harm(options, budget)
    assert sum(o.cost for o in found.values()) <= budget
    every = [option for own in options.values() for option in own]
    one_each = LinearConstraint(np.kron(np.eye(60), np.ones(4)), 1, 1)
    costs = LinearConstraint([option.cost for option in every], ub=budget)
    best = milp(
        [option.harm for option in every],
        integrality=np.ones(240),
        bounds=Bounds(0, 1),
        constraints=[one_each, costs],
        options={"mip_rel_gap": 1e-4},
    ).fun
    assert best * 0.9999 <= sum(o.harm for o in found.values()) <= 1.005 * best


def test_a_budget_is_never_exceeded():
    program, _, _ = digits()
    for budget in (0.14, 0.2, 0.5, 12_000, 10**9):
        step = auto(budget, batches=measured()).decide(program)
        leaves = step.rewrite(program.graph).graph.leaves
        size = sum(leaf.bytes for leaf in leaves)
        assert size <= (budget * program.bytes if budget < 1 else budget)
        assert (size == program.bytes) == (budget == 10**9)


def test_the_choice_is_better_than_one_scheme_of_the_same_bytes():
    program, _, held_out = digits()
    uniform = program >> weights(FOUR)
    mixed = program >> auto(uniform.bytes, batches=measured())
    assert mixed.bytes <= uniform.bytes
    assert mean_loss(mixed, held_out) < mean_loss(uniform, held_out)


def test_between_two_schemes_it_beats_giving_the_bits_elsewhere():
    program, _, held_out = digits()
    coarse = program >> weights(TWO)
    schemes = [TWO, FOUR]
    mixed = program >> auto(
        int(1.4 * coarse.bytes), batches=measured(), schemes=schemes
    )
    chosen = {path: scheme.dtype for path, scheme, _ in mixed.recipe[0].chosen}
    assert set(chosen.values()) == {"int2", "int4"}
    swapped = {"int2": FOUR, "int4": TWO}
    other = program >> weights(rules={p: swapped[d] for p, d in chosen.items()})
    before = mean_loss(program, held_out)
    rise = mean_loss(mixed, held_out) - before
    assert rise < 0.5 * (mean_loss(other, held_out) - before)
    assert rise < 0.4 * (mean_loss(coarse, held_out) - before)


def test_events_and_coverage_tell_the_choice_and_why():
    program, _, _ = digits()
    step = auto(0.45, batches=measured(), schemes=COARSE, skip="0/w")
    small = program >> step
    events = small.history[-1].events
    assert {event.path for event in events.fired} == {"1/w", "2/w", "3/w"}
    assert all("predicted rise of the loss" in event.what for event in events.fired)
    why = {event.path: event.what for event in events.skipped}
    assert why["0/w"] == "left out by rule 0/w"
    stored = {row.leaf for row in coverage(small).rows if row.scheme}
    assert stored == {event.path for event in events.fired}

    loose = auto(0.9, batches=measured()).decide(program).rewrite(program.graph)
    why = {event.path: event.what for event in loose.events.skipped}
    assert "stays as it is: the budget allows it" in why.values()


def test_rules_fix_what_they_are_about():
    program, _, _ = digits()
    rules = {"3/*": "float8_e4m3"}
    step = auto(0.3, batches=measured(), rules=rules, schemes=COARSE).decide(program)
    rewrite = step.rewrite(program.graph)
    rows = rewrite.graph.coverage.rows
    assert {r.leaf: r.scheme for r in rows}["3/w"] == "float8_e4m3"
    assert "3/w" not in {path for path, _, _ in step.chosen}
    assert sum(leaf.bytes for leaf in rewrite.graph.leaves) <= 0.3 * program.bytes


def test_what_was_decided_is_data_and_measures_nothing():
    program, batches, _ = digits()
    small = program >> auto(0.24, batches=measured(), schemes=COARSE)
    (step,) = small.recipe
    again = from_config(to_config(step))
    assert again == step
    assert again.loss is None
    assert again.batches is None
    x = batches[0][0]
    np.testing.assert_array_equal(small(x), (program >> again)(x))
    assert small(x[:3]).shape == (3, 10)
    twice = small >> step
    assert twice.history[-1].events.fired == []
    assert twice.graph is small.graph
    afresh = small >> auto(0.24, batches=measured(), schemes=COARSE)
    assert afresh.bytes == small.bytes


def test_a_path_that_looks_like_a_glob_or_a_scope_names_itself():
    values = {"w[0]": normal(64, 64), "w0": normal(64, 64, seed=1)}

    def f(v, x):
        with jax.named_scope("w0"):
            y = x @ v["w[0]"]
        return y + 100.0 * (x @ v["w0"])

    x = normal(8, 64)
    program = mc.trace(f, values, x)
    step = auto(0.22, loss=squared, batches=[(x, program(x))], schemes=COARSE)
    rows = step.decide(program).rewrite(program.graph).graph.coverage.rows
    schemes = {row.leaf: row.scheme.split()[0] for row in rows}
    assert schemes == {"w[0]": "int4", "w0": "int8"}


def test_activations_are_rounded_if_asked_for():
    program, _, held_out = digits()
    step = auto(0.24, batches=measured(), schemes=COARSE, activations="int8")
    small = program >> step
    assert coverage(small).integer_flops > 0.5
    rise = mean_loss(small, held_out) - mean_loss(program, held_out)
    assert abs(rise) < 0.02


# --- functions that were not written for it ------------------------------------


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(64)(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=3, **options)()(x, None)
        return nn.Dense(64)(x)


def test_a_stack_of_flax_layers_gets_one_scheme():
    x = normal(4, 64)
    model = Scanned()
    program = mc.trace(model.apply, model.init(jax.random.key(1), x), x)
    step = auto(0.3, loss=squared, batches=[(x, x)], schemes=[EIGHT])
    small = program >> step
    assert small.bytes <= 0.3 * program.bytes
    chosen = [path for path, _, _ in small.recipe[0].chosen]
    assert len(chosen) == 2
    assert jnp.isfinite(small(x)).all()


def test_an_equinox_layer_in_bfloat16():
    model = eqx.nn.Linear(64, 64, key=jax.random.key(0))
    model = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model)
    x = normal(4, 64).astype(jnp.bfloat16)
    program = mc.trace(lambda m, x: jax.vmap(m)(x), model, x)

    def loss(y, target):
        return squared(y.astype(jnp.float32), target)

    step = auto(0.6, loss=loss, batches=[(x, normal(4, 64))], schemes=["int8"])
    small = program >> step
    assert small.bytes <= 0.6 * program.bytes
    assert small(x).dtype == jnp.bfloat16


def test_what_is_stored_already_is_left_and_counted():
    program, _, _ = digits()
    first = program >> weights(rules={"0/w": "int8", "*": None})
    step = auto(0.22, batches=measured(), schemes=COARSE).decide(first)
    rewrite = step.rewrite(first.graph)
    assert sum(leaf.bytes for leaf in rewrite.graph.leaves) <= 0.22 * program.bytes
    schemes = {row.leaf: row.scheme for row in rewrite.graph.coverage.rows}
    assert schemes["0/w"] == "int8"
    assert {path for path, _, _ in step.chosen} == {"1/w", "2/w", "3/w"}


def test_several_inputs_and_a_loss_of_the_outputs_alone():
    def f(v, x, y):
        return {"sum": x @ v["w"] + y}

    x, y = normal(4, 64), normal(4, 64)
    program = mc.trace(f, {"w": normal(64, 64)}, x, y)

    def loss(outputs):
        return (outputs["sum"] ** 2).mean()

    found = sensitivity(program, loss, [(x, y), (y, x)], ["int8"])
    assert found.paths == ("w",)


# --- a budget of time ----------------------------------------------------------


def test_a_budget_of_time_is_spent_where_it_is_measured_to_count(monkeypatch):
    program, _, _ = digits()
    int8, int4 = EIGHT, FOUR
    fast = {"0/w": 4.0, "1/w": 3.0, "2/w": 2.0, "3/w": 1.0}

    def times(graph, schemes, step):
        return {p: {None: s, int8: 1.1 * s, int4: 0.5 * s} for p, s in fast.items()}

    module = "compiler.passes.quantize.mixed.auto"
    monkeypatch.setattr(f"{module}.product_times", times)
    monkeypatch.setattr(f"{module}.seconds_of", lambda program, inputs: 10.0)

    def decided(budget):
        return auto(budget, batches=measured(), schemes=COARSE).decide(program).chosen

    chosen = [path for path, scheme, _ in decided(latency(share=0.81)) if scheme]
    assert sum(0.5 * fast[path] for path in chosen) >= 1.9
    assert {scheme for _, scheme, _ in decided(latency(share=0.81))} == {None, int4}
    assert {scheme for _, scheme, _ in decided(latency(20.0))} == {None}
    with pytest.raises(BudgetError, match=r"at least 5 seconds.*got 4 seconds"):
        decided(latency(4.0))


def test_products_are_timed_under_every_scheme():
    x = normal(2, 64)

    def f(v, x):
        y = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v["w"])[0]
        return y + v["e"][jnp.arange(2)]

    values = {"w": normal(3, 64, 64), "e": normal(20, 64)}
    program = mc.trace(f, values, x)
    schemes = [EIGHT]
    own = dict.fromkeys(values, schemes)
    found = timing.product_times(program.graph, own, weights())
    assert set(found) == {"w", "e"}
    for times in found.values():
        assert set(times) == {None, *schemes}
        assert all(0 < seconds < 1 for seconds in times.values())


def test_a_budget_of_time_cannot_be_less_than_any_choice_takes():
    program, _, _ = digits()
    effects = tuple(e for e in measured().effects if e.scheme == EIGHT)
    known = dataclasses.replace(measured(), effects=effects)
    with pytest.raises(BudgetError, match=r"at least .* seconds.*got 1e-12 seconds"):
        program >> auto(latency(1e-12), batches=known, schemes=["int8"])


def test_a_budget_of_time_is_one_number_above_zero():
    for wrong in ({}, {"seconds": 1.0, "share": 0.5}, {"seconds": 0.0}):
        with pytest.raises(ValueError, match="seconds or a share above zero"):
            latency(**wrong)
    assert from_config(to_config(latency(share=0.5))) == Latency(share=0.5)


# --- what goes wrong -----------------------------------------------------------


@pytest.mark.parametrize("budget", [0, -1, 1.0, 0.0, -0.5, True, "0.5"])
def test_a_budget_is_bytes_or_a_share(budget):
    with pytest.raises(ValueError, match="expected a budget in bytes"):
        auto(budget)


def test_an_impossible_budget_names_the_smallest():
    program, _, _ = digits()
    graph = weights(FOUR).rewrite(program.graph).graph
    least = sum(leaf.bytes for leaf in graph.leaves)
    with pytest.raises(BudgetError, match=rf"at least {least:,} bytes.*got 1,000"):
        auto(1000, batches=measured(), schemes=[FOUR]).decide(program)
    step = auto(least, batches=measured(), schemes=[FOUR]).decide(program)
    assert all(scheme == FOUR for _, scheme, _ in step.chosen)


def test_wrong_batches_and_losses_are_named():
    program, batches, _ = digits()
    (x, y) = batches[0]
    measure = functools.partial(sensitivity, program, schemes=["int8"])
    with pytest.raises(CalibrationError, match="expected at least one to measure"):
        measure(entropy, [])
    nan = [(x, y), (x.at[0, 0].set(jnp.nan), y)]
    with pytest.raises(CalibrationError, match="batch 1: expected a finite loss"):
        measure(entropy, nan)
    with pytest.raises(CalibrationError, match=r"batch 0: expected loss.*scalar"):
        measure(lambda outputs, labels: outputs, batches)
    with pytest.raises(CalibrationError, match="batch 0: expected loss"):
        measure(entropy, [x])
    with pytest.raises(CalibrationError, match="expected a tuple of the program's 1"):
        measure(entropy, [()])

    def root(outputs, labels):
        return jnp.sqrt(jnp.abs(0.0 * outputs)).sum()

    with pytest.raises(CalibrationError, match="0/w: expected finite gradients"):
        measure(root, batches)
    with pytest.raises(ValueError, match="schemes: expected at least one"):
        sensitivity(program, entropy, batches, [])
    with pytest.raises(CalibrationError, match="expected a loss and batches"):
        program >> auto(0.2)


def test_a_program_without_arrays_cannot_be_measured():
    program, batches, _ = digits()
    shapes = jax.eval_shape(lambda v: v, program.variables)
    abstract = mc.trace(mlp, shapes, batches[0][0])
    with pytest.raises(VariablesMismatchError, match="traced on shapes alone"):
        abstract >> auto(0.2, loss=entropy, batches=batches)


def test_a_program_without_weights_is_left():
    program = mc.trace(lambda v, x: x + v["b"], {"b": jnp.ones((1, 4))}, normal(2, 4))
    small = program >> auto(16)
    assert small.graph is program.graph
    with pytest.raises(BudgetError, match="at least 16 bytes"):
        program >> auto(8)
    assert isinstance(small.recipe[0], QuantizeAuto)


# --- the picture ---------------------------------------------------------------


def test_sensitivity_is_plotted(tmp_path):
    path = measured().plot(tmp_path / "deep" / "sensitivity.svg")
    text = path.read_text()
    assert "<svg" in text
    assert "http" not in text.split("<svg", 1)[1].split("<g", 1)[1].split("xlink")[0]
    axes = measured().plot().axes[0]
    assert len(axes.patches) == len(measured().effects)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(
        measured().paths
    )


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"mapping\[viz\]"):
        measured().plot()
