"""Sparse optimizers against what they promise, step by step, and against numpy."""

import functools
import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mapping as mp
from mapping import leaf_paths, optimizers, sparse
from mapping.config import from_config, to_config
from mapping.errors import FieldError, ShapeMismatchError, UnknownPathError
from mapping.sparse import apply_masks, hold, read_masks
from mapping.sparse.masks import count

STEPS = 24
ADAMW = optimizers.adamw(0.05, weight_decay=0.1)
HEAVY = optimizers.sgd(0.05, momentum=0.9)
FREE = optimizers.sgd(0.0)
RAMP = sparse.polynomial(0.75, 3, 15, every=4)
KERNELS = {"body/kernel": (8, 12), "head/kernel": (12, 5)}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


BODY = {"body": {"kernel": random(8, 12), "bias": random(12, seed=1)}}
PARAMS = {
    **BODY,
    "head": {"kernel": random(12, 5, seed=2), "bias": random(5, seed=3)},
}


def slopes(step, params):
    return jax.tree.map(
        lambda p: jnp.cos(3 * p + jnp.asarray(step, p.dtype)).astype(p.dtype), params
    )


def advance(transform, carry, step):
    params, state = carry
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, state = transform.update(slopes(step, params), state, params)
        params = optax.apply_updates(params, updates)
    return (params, state), (params, state)


def trained(optimizer, steps=STEPS, params=BODY):
    """Params and state after every step, stacked, of one compiled scan."""
    transform = optimizers.as_transform(optimizer)
    run = functools.partial(jax.lax.scan, functools.partial(advance, transform))
    return jax.jit(run)((params, transform.init(params)), jnp.arange(steps))


def each_step(optimizer, **options):
    """Weights and masks by path, of numpy, after every step."""
    params, state = trained(optimizer, **options)[1]
    masks = {path: np.asarray(mask) for path, mask in read_masks(state).items()}
    return {path: np.asarray(leaf_paths(params)[path]) for path in masks}, masks


def assert_zero(weights, masks):
    for path, mask in masks.items():
        pruned = weights[path][~mask]
        assert pruned.size
        assert (pruned == 0).all()


# What every sparse optimizer promises

CASES = {
    "magnitude": (ADAMW, {"sparsity": RAMP}),
    "movement": (HEAVY, {"sparsity": RAMP, "method": sparse.movement()}),
    "rigl": (HEAVY, {"sparsity": 0.8, "method": sparse.rigl(4, 20)}),
    "set": (HEAVY, {"sparsity": 0.8, "method": sparse.set_(4)}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_pruned_stays_zero_and_as_many_as_planned_are_kept(name):
    optimizer, options = CASES[name]
    ramps = options["sparsity"] is RAMP
    weights, masks = each_step(sparse.sparse(optimizer, **options), steps=50)
    (weight,), (mask,) = weights.values(), masks.values()
    assert (weight[8 if ramps else 0 :][~mask[8 if ramps else 0 :]] == 0).all()
    for step in range(50):
        density = 1 - float(RAMP(step)) if ramps else 0.2
        assert mask[step].sum() == count(96, density), step
    assert (mask[-1] != mask[8]).any()


def test_small_leaves_keep_more_by_erk():
    tuned = sparse.sparse(FREE, 0.8, distribution=sparse.erk())
    _, masks = each_step(tuned, steps=1, params=PARAMS)
    for path, share in sparse.erk().densities(KERNELS, 0.2).items():
        assert masks[path].sum() == count(masks[path].size, share)


def test_blocks_under_one_threshold_stay_whole():
    options = {"pattern": sparse.Block(4, 3), "distribution": sparse.global_()}
    weights, masks = each_step(sparse.sparse(HEAVY, 0.5, **options), params=PARAMS)
    assert_zero(weights, masks)
    tiles = masks["body/kernel"].reshape(STEPS, 2, 4, 4, 3)
    assert (tiles.all((2, 4)) == tiles.any((2, 4))).all()
    whole = [masks["head/kernel"][:, :, c : c + 3] for c in (0, 3)]
    parts = [part.reshape(STEPS, 3, 4, -1) for part in whole]
    kept = sum(part.any((2, 3)).sum(1) for part in parts) + tiles.any((2, 4)).sum(
        (1, 2)
    )
    assert (kept == 7).all()  # half of 8 + 6 blocks


def test_two_of_four_hold_after_every_update_and_swap_inside_their_groups():
    options = {"pattern": sparse.NOfM(2, 4), "method": sparse.rigl(3, 20)}
    weights, masks = each_step(sparse.sparse(HEAVY, 0.5, **options))
    assert_zero(weights, masks)
    for mask in masks.values():
        groups = mask.reshape(STEPS, -1, 4, mask.shape[-1])
        assert (groups.sum(2) == 2).all()
        assert (mask[0] != mask[-1]).any()


def test_what_grows_by_chance_grows_in_short_groups_too():
    method, pattern = sparse.set_(1, fraction=1.0), sparse.NOfM(1, 4)
    tuned = sparse.sparse(FREE, 0.5, method=method, pattern=pattern)
    for state in stepped(tuned, ONE, SLOPE, 3):  # groups of 4 and of 2
        mask = of_state(state)
        assert (mask[:4].sum(0) == 1).all()
        assert (mask[4:].sum(0) == 1).all()


def test_moments_of_what_is_pruned_are_zero():
    _, state = trained(sparse.sparse(ADAMW, RAMP))[0]
    masks, moments = read_masks(state), leaf_paths(state.inner_state)
    for path, mask in masks.items():
        for name in ("mu", "nu"):
            moment = moments[f"0/{name}/{path}"]
            assert (np.asarray(moment)[~mask] == 0).all()
            assert (np.asarray(moment)[mask] != 0).all()


def test_at_no_sparsity_it_is_the_bare_optimizer_bit_for_bit():
    # Op by op: compiled whole, the bare optimizer itself is rounded otherwise.
    ends = []
    for optimizer in (ADAMW, sparse.sparse(ADAMW, 0.0)):
        transform = optimizer.transform()
        carry = (PARAMS, transform.init(PARAMS))
        for step in range(2):
            carry, _ = advance(transform, carry, step)
        ends.append(leaf_paths(carry[0]))
    for path, leaf in ends[0].items():
        np.testing.assert_array_equal(ends[1][path], leaf)


def test_what_is_dense_is_trained_as_if_nothing_were_sparse():
    bare = leaf_paths(trained(HEAVY, params=PARAMS)[0][0])
    tuned = sparse.sparse(HEAVY, 0.9, but=("head/*",))
    (params, state), _ = trained(tuned, params=PARAMS)
    assert [*read_masks(state)] == ["body/kernel"]
    for path in ("head/kernel", "head/bias", "body/bias"):
        np.testing.assert_array_equal(leaf_paths(params)[path], bare[path])


def test_an_eager_step_is_the_compiled_one():
    transform = sparse.sparse(optimizers.sgd(0.1), 0.7).transform()
    carry = (BODY, transform.init(BODY))
    eager, _ = advance(transform, carry, 0)
    compiled, _ = jax.jit(functools.partial(advance, transform))(carry, 0)
    for one, other in zip(*map(jax.tree.leaves, (eager, compiled)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_half_precision_is_exactly_zero_too():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), BODY)
    narrow = optax.chain(optax.sgd(0.1), optax.stateless(halved))
    for optimizer, params in ((HEAVY, half), (narrow, BODY)):
        transform = sparse.sparse(optimizer, 0.8).transform()
        carry = (params, transform.init(params))
        (after, state), _ = jax.jit(functools.partial(advance, transform))(carry, 0)
        kernel, mask = after["body"]["kernel"], state.masks["body"]["kernel"]
        assert kernel.dtype == params["body"]["kernel"].dtype
        assert (np.asarray(kernel != 0) == mask).all()


def halved(updates, params):
    return jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates)


# Methods against numpy, one step at a time


def stepped(tuned, params, gradients, steps=1):
    transform = tuned.transform()
    state = transform.init(params)
    update, seen = jax.jit(transform.update), [state]
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            _, state = update(gradients, state, params)
        seen.append(state)
    return seen


def of_state(state):
    return np.asarray(state.masks["kernel"])


ONE = {"kernel": random(6, 5, seed=7)}
SLOPE = {"kernel": random(6, 5, seed=8)}


def test_rigl_drops_the_smallest_and_grows_the_largest_gradients():
    tuned = sparse.sparse(FREE, 0.5, method=sparse.rigl(2, 8, fraction=0.4))
    seen = stepped(tuned, ONE, SLOPE, 10)
    before, after = of_state(seen[2]), of_state(seen[3])
    assert before.sum() == after.sum() == 15
    weights, gradients = (
        abs(np.asarray(ONE["kernel"])),
        abs(np.asarray(SLOPE["kernel"])),
    )
    replaced = round(0.4 / 2 * (1 + np.cos(np.pi * 2 / 8)) * 15)
    smallest = np.sort(weights[before])[replaced - 1]
    kept = before & (weights > smallest)
    threshold = np.sort(gradients[~kept])[-replaced]
    np.testing.assert_array_equal(after, kept | (~kept & (gradients >= threshold)))
    np.testing.assert_array_equal(of_state(seen[1]), of_state(seen[0]))
    np.testing.assert_array_equal(of_state(seen[-1]), of_state(seen[-2]))


def test_set_is_decided_by_its_seed():
    def masks(seed):
        method = sparse.set_(1, seed=seed)
        tuned = sparse.sparse(FREE, 0.5, method=method)
        return [of_state(state) for state in stepped(tuned, ONE, SLOPE, 3)]

    one, same, other = masks(0), masks(0), masks(1)
    np.testing.assert_array_equal(one, same)
    assert (np.asarray(one) != np.asarray(other)).any()
    weights = abs(np.asarray(ONE["kernel"]))
    for before, after in itertools.pairwise(one[1:]):
        assert before.sum() == after.sum() == 15
        largest = before & (weights > np.sort(weights[before])[4])  # 0.3 * 15 go
        assert after[largest].all()
        assert (after & ~before).any()


def test_movement_keeps_what_moves_away_from_zero():
    tuned = sparse.sparse(FREE, sparse.one_shot(0.6, 2), method=sparse.movement(2.0))
    state = stepped(tuned, ONE, SLOPE, 3)[-1]
    product = np.asarray(ONE["kernel"]) * np.asarray(SLOPE["kernel"])
    np.testing.assert_allclose(state.scores["kernel"], -6 * product, rtol=1e-5)
    wanted = product <= np.sort(product.reshape(-1))[11]
    np.testing.assert_array_equal(of_state(state), wanted)
    soft = sparse.sparse(
        FREE,
        sparse.one_shot(0.5, 1),
        method=sparse.movement(threshold=0.4, penalty=0.5),
    )
    scores = np.zeros((6, 5))
    for _ in range(2):
        gate = 1 / (1 + np.exp(-scores))
        scores = scores - product - 0.5 * gate * (1 - gate)
    state = stepped(soft, ONE, SLOPE, 2)[-1]
    np.testing.assert_array_equal(of_state(state), 1 / (1 + np.exp(-scores)) > 0.4)


def test_what_comes_back_has_the_largest_gradients():
    waves = sparse.cyclic(0.8, 2, 2, initial=0.5)
    tuned = sparse.sparse(optimizers.sgd(0.0), waves)
    first, second, third = (of_state(s) for s in stepped(tuned, ONE, SLOPE, 3)[1:])
    assert [first.sum(), second.sum(), third.sum()] == [15, 6, 15]
    grown = np.argsort(-abs(np.asarray(SLOPE["kernel"])[~second]))[:9]
    wanted = second.copy()
    wanted.flat[np.flatnonzero(~second)[grown]] = True
    np.testing.assert_array_equal(third, wanted)


def test_a_function_of_the_step_is_a_schedule_that_always_chooses():
    falling = mp.Built.of(optax.linear_schedule, 0.5, 0.9, 4)
    _, masks = each_step(sparse.sparse(FREE, falling), steps=6)
    kept = [int(mask.sum()) for mask in masks["body/kernel"]]
    assert kept == [48, 38, 29, 19, 10, 10]


def test_what_is_zero_is_held_there():
    start = apply_masks(PARAMS, sparse.choose(PARAMS, 0.6))
    start["head"]["kernel"] = jnp.zeros((12, 5))  # not pruned, yet to be trained
    weights, masks = each_step(hold(HEAVY), steps=3, params=start)
    alive = np.asarray(start["body"]["kernel"]) != 0
    assert ((weights["body/kernel"] != 0) == alive).all()
    assert masks["head/kernel"].all()
    assert (weights["head/kernel"][-1] != 0).all()


# Inside other optimizers and steps


def test_masks_are_found_however_deep_they_are():
    tuned = sparse.sparse(optax.adam(0.1), 0.5, method=sparse.set_(5))
    alone = read_masks(tuned.transform().init(PARAMS))
    nested = {
        "chain": optax.clip(10.0) >> tuned,
        "steps": optax.MultiSteps(tuned.transform(), 2).gradient_transformation(),
        "groups": optimizers.partition({"head/*": tuned, "*": tuned}),
        "sparse": sparse.sparse(tuned, 0.5, at=("*/bias",)),
    }
    for name, optimizer in nested.items():
        state = optimizers.as_transform(optimizer).init(PARAMS)
        found = read_masks({"optimizer": state, "step": 0})
        assert found.keys() - alone.keys() == (
            {"body/bias", "head/bias"} if name == "sparse" else set()
        )
        for path, mask in alone.items():
            np.testing.assert_array_equal(found[path], mask)
    by_path = tuned.init(jax.random.key(0), PARAMS).state
    assert read_masks(by_path).keys() == alone.keys()
    assert "masks/body/kernel" in leaf_paths(by_path)
    report = sparse.sparsity(alone)
    assert report["body/kernel"] == 0.5
    assert (report.size, report.kept, report.total) == (156, 78, 0.5)
    assert "78" in str(report).splitlines()[-1]


def test_a_sparse_optimizer_is_a_value_and_trains():
    tuned = sparse.sparse(HEAVY, RAMP, method=sparse.rigl(5, 10), but=("head/*",))
    assert from_config(to_config(tuned)) == tuned
    x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    fitted = mp.train.fit(
        mp.models.MLP(2, (16,)), (x, y), loss=mp.losses.CrossEntropy(), epochs=2,
        optimizer=sparse.sparse(HEAVY, 0.9),
    )  # fmt: skip
    masks, params = read_masks(fitted.state), fitted.variables.params
    kernel = np.asarray(params["hidden1"]["dense"]["kernel"])
    assert (kernel != 0).sum() <= masks["hidden1/dense/kernel"].sum() == 6


def test_a_state_goes_on_from_a_checkpoint_by_path():
    tuned = sparse.sparse(HEAVY, 0.5, method=sparse.movement()).transform()
    (params, state), _ = trained(tuned, 3)
    saved = {path: np.asarray(leaf) for path, leaf in leaf_paths(state).items()}
    assert {"masks/body/kernel", "scores/body/kernel", "count"} <= saved.keys()
    empty = tuned.init(jax.tree.map(jnp.zeros_like, BODY))
    restored = mp.load(empty, saved).tree
    step = jax.jit(functools.partial(advance, tuned))
    ends = [step((params, each), 3)[0] for each in (state, restored)]
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sharded_weights_have_sharded_masks():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    params = jax.device_put(PARAMS, sharding)
    state = sparse.sparse(ADAMW, 0.5).transform().init(params)
    assert state.masks["body"]["kernel"].sharding == sharding


# Trees of other frameworks


class Block(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(6, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(5, rngs=rngs)


def tree_of(framework):
    if framework == "linen":
        stack = nn.Sequential([nn.Dense(5), nn.LayerNorm()])
        return stack.init(jax.random.key(0), jnp.ones((1, 6)))
    if framework == "nnx":
        return nnx.split(Block(), nnx.Param)[1]
    return eqx.filter(
        eqx.nn.Sequential(
            [eqx.nn.Linear(6, 5, key=jax.random.key(0)), eqx.nn.LayerNorm(5)]
        ),
        eqx.is_array,
    )


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_trees_of_every_framework_are_trained_sparse(framework):
    params = tree_of(framework)
    transform = sparse.sparse(optimizers.sgd(0.1), 0.8).transform()
    step = jax.jit(functools.partial(advance, transform))
    (params, state), _ = step((params, transform.init(params)), 0)
    ((path, mask),) = read_masks(state).items()
    leaf = leaf_paths(params)[path]
    assert leaf.shape in ((6, 5), (5, 6))
    assert int(mask.sum()) == 6
    assert (np.asarray(leaf)[~np.asarray(mask)] == 0).all()
    again = apply_masks(params, read_masks(state))
    assert jax.tree.structure(again) == jax.tree.structure(params)


# Misuse


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sparse.sparse(optax.adam, 0.5), FieldError, r"^sparse\.optimizer: "),
        (lambda: sparse.sparse(ADAMW, 1.5), FieldError, r"^one_shot\.sparsity: "),
        (lambda: sparse.sparse(ADAMW, "0.5"), FieldError, r"^sparse\.sparsity: .*0\.9"),
        (
            lambda: sparse.sparse(ADAMW, 0.5, method=sparse.rigl),
            FieldError,
            r"^sparse\.method: expected one such as magnitude\(\)",
        ),
        (
            lambda: sparse.sparse(ADAMW, 0.5, at="*/kernel"),
            FieldError,
            r"^sparse\.at: expected a tuple of globs",
        ),
        (
            lambda: sparse.sparse(
                ADAMW, 0.5, distribution=sparse.global_(), pattern=sparse.NOfM()
            ),
            FieldError,
            "compete across leaves",
        ),
        (
            lambda: stepped(
                sparse.sparse(
                    FREE, 0.5, method=sparse.movement(threshold=0.1),
                    pattern=sparse.Block(2, 2),
                ), ONE, SLOPE,
            ),
            FieldError,
            "single weights beside a threshold",
        ),
        (
            lambda: sparse.sparse(ADAMW, 0.5, at=("bdy/*",)).transform().init(PARAMS),
            UnknownPathError,
            r"'bdy/\*' names none of 4 params\. Nearest: body/",
        ),
        (
            lambda: sparse.sparse(FREE, 0.5).transform().update(ONE, (), None),
            FieldError,
            "expected the params beside the gradients",
        ),
        (lambda: read_masks(ADAMW.transform().init(ONE)), UnknownPathError, "without"),
        (lambda: apply_masks(ONE, {"krnl": 1}), UnknownPathError, "Nearest: kernel"),
        (
            lambda: apply_masks(ONE, {"kernel": np.ones(3, bool)}),
            ShapeMismatchError,
            r"^kernel: expected a mask \[6, 5\], got bool\[3\]",
        ),
        (lambda: sparse.set_(0), FieldError, r"^set\.every: "),
        (lambda: sparse.rigl(5, 10, fraction=2.0), FieldError, r"^rigl\.fraction: "),
        (lambda: sparse.movement(0.0), FieldError, r"^movement\.rate: .*above 0"),
        (lambda: sparse.movement(penalty=1.0), FieldError, "a threshold beside"),
    ],
)  # fmt: skip
def test_what_is_no_sparse_training_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
