"""The laws of the combinators."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mapping as mp
from mapping.core import Context, Variables, leaf_paths
from mapping.errors import (
    FieldError,
    MissingVariablesError,
    NameCollisionError,
    ShapeMismatchError,
    UnknownPathError,
)
from mapping.layers import BatchNorm, Dense, Dropout

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 4))
TRAIN = Context(key=jax.random.key(2), train=True)


def same(got, wanted, tolerance=1e-6):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for path, leaf in leaf_paths(wanted).items():
        np.testing.assert_allclose(
            leaf_paths(got)[path], leaf, rtol=tolerance, atol=tolerance, err_msg=path
        )


def outputs(net, *inputs, key=KEY):
    v = net.init(key, *inputs)
    return net(v.params, *inputs, state=v.state)


# Plain functions and layers that keep four features, to draw compositions from.
KEEPING = st.sampled_from([jnp.tanh, jax.nn.relu, jnp.negative, Dense(4), jnp.square])


# --- Parallel and Branch -----------------------------------------------------------


@given(st.tuples(KEEPING, KEEPING, KEEPING, KEEPING))
@settings(max_examples=15, deadline=None)
def test_products_compose(four):
    f, g, h, k = four
    left = mp.Parallel(f, g) >> mp.Parallel(h, k)
    right = mp.Parallel(mp.Serial(f, h), mp.Serial(g, k))
    lv = left.init(KEY, X, 2 * X)
    moved = {
        name: {
            inner: lv.params.get(step, {}).get(own, {})
            for inner, step, own in zip(
                right.steps[i][1].names,
                left.names,
                (left.steps[0][1].names[i], left.steps[1][1].names[i]),
                strict=True,
            )
        }
        for i, name in enumerate(right.names)
    }
    same(left(lv.params, X, 2 * X), right(moved, X, 2 * X))


def test_a_branch_is_a_product_after_a_copy():
    f, g = Dense(3), Dense(2) >> jnp.tanh
    branch, product = mp.Branch(a=f, b=g), mp.Parallel(a=f, b=g)
    v = branch.init(KEY, X)
    assert leaf_paths(v).keys() == leaf_paths(product.init(KEY, X, X)).keys()
    same(branch(v.params, X), product(v.params, X, X))


def test_a_product_takes_a_dict_by_name_and_returns_one():
    net = mp.Parallel(wide=Dense(2), deep=jnp.exp)
    v = net.init(KEY, {"deep": X, "wide": X})
    y = net(v.params, {"wide": X, "deep": X})
    same(y["deep"], jnp.exp(X))
    assert y["wide"].shape == (5, 2)
    with pytest.raises(ShapeMismatchError, match=r"keys \['deep', 'wide'\]"):
        net(v.params, {"wide": X, "shallow": X})


def test_a_product_with_too_few_inputs_says_so():
    with pytest.raises(ShapeMismatchError, match=r"expects 2 inputs.*tanh, exp.*got 1"):
        mp.Parallel(jnp.tanh, jnp.exp)({}, X)


JOINS = [
    ("sum", lambda a, b: a + b),
    ("mean", lambda a, b: (a + b) / 2),
    ("product", lambda a, b: a * b),
    ("concat", lambda a, b: np.concatenate([a, b], -1)),
    ("stack", lambda a, b: np.stack([a, b])),
]


@pytest.mark.parametrize(("join", "reference"), JOINS, ids=[j for j, _ in JOINS])
def test_joins_are_what_numpy_says(join, reference):
    got = mp.Branch(jnp.sin, jnp.cos, join=join)({}, X)
    same(got, reference(np.sin(X), np.cos(X)))


def test_a_join_may_be_a_mapping_with_params_of_its_own():
    net = mp.Branch(a=Dense(3), b=Dense(3), join=jnp.subtract)
    v = net.init(KEY, X)
    a, b = (Dense(3)(v.params[n], X) for n in "ab")
    same(net(v.params, X), a - b)
    net = mp.Branch(a=jnp.sin, b=jnp.cos, join=mp.Parallel(Dense(2), BatchNorm()))
    v = net.init(KEY, X)
    assert list(v.params["join"]) == ["dense", "batch_norm"]
    _, state = net.apply(v, X, ctx=TRAIN)
    assert float(abs(state["join"]["batch_norm"]["mean"]).sum()) > 0


def test_a_join_that_cannot_be_lists_the_shapes():
    net = mp.Serial(wide=mp.Branch(a=Dense(3), b=Dense(2), join="sum"))
    with pytest.raises(
        ShapeMismatchError, match=r"wide: outputs to sum.*a float32\[5, 3\]"
    ):
        net.init(KEY, X)
    with pytest.raises(FieldError, match=r"Branch\.join.*'summ'.*Nearest: sum"):
        mp.Branch(jnp.sin, join="summ")


# --- Residual ----------------------------------------------------------------------


def test_a_residual_is_a_branch_with_the_identity_summed():
    inner = Dense(4) >> jnp.tanh
    net, branch = mp.Residual(inner), mp.Branch(mp.Serial(), inner=inner, join="sum")
    v = net.init(KEY, X)
    same(net(v.params, X), branch(v.params, X))


def test_a_residual_with_a_shortcut_changes_shapes_and_one_without_may_not():
    net = mp.Residual(Dense(3), shortcut=Dense(3))
    v = net.init(KEY, X)
    p = v.params
    same(net(p, X), Dense(3)(p["shortcut"], X) + Dense(3)(p["inner"], X))
    with pytest.raises(ShapeMismatchError, match=r"shortcut float32\[5, 4\], inner"):
        outputs(mp.Residual(Dense(3)), X)


def test_further_inputs_go_round_the_shortcut():
    same(mp.Residual(jnp.multiply)({}, X, 3 * X), X + 3 * X * X)


# --- Repeat ------------------------------------------------------------------------

LAYER = mp.Serial(dense=Dense(4), norm=BatchNorm(), act=jnp.tanh, drop=Dropout(0.4))


def unrolled(variables, times):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], variables) for i in range(times)]


@pytest.mark.parametrize("options", [{}, {"remat": True}, {"unroll": 2},
                                     {"remat": "dots_saveable"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("train", [False, True])
def test_repeat_is_the_copies_one_after_the_other(options, train):
    net = mp.Repeat(LAYER, 3, **options)
    variables = net.init(KEY, X)

    def looped(variables, x):
        states = []
        for i, own in enumerate(unrolled(variables, 3)):
            key = jax.random.fold_in(TRAIN.key, i)
            x, state = LAYER.apply(own, x, ctx=Context(key=key, train=train))
            states.append(state)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    ctx = dataclasses.replace(TRAIN, train=train)

    def value(run, params):
        y, state = run(Variables(params, variables.state))
        return jnp.sum(y**2), (y, state)

    ours = jax.value_and_grad(
        lambda p: value(lambda v: net.apply(v, X, ctx=ctx), p), has_aux=True
    )(variables.params)
    theirs = jax.value_and_grad(
        lambda p: value(lambda v: looped(v, X), p), has_aux=True
    )(variables.params)
    same(ours, theirs, 2e-5)


def test_every_copy_is_initialised_with_a_key_of_its_own():
    v = mp.Repeat(Dense(4), 3).init(KEY, X)
    for i in range(3):
        own = Dense(4).init(jax.random.fold_in(KEY, i), X)
        same(jax.tree.map(lambda leaf, i=i: leaf[i], v.params), own.params)


def test_the_program_is_as_long_as_one_copy():
    def size(times):
        net = mp.Repeat(LAYER, times)
        v = jax.eval_shape(net.init, KEY, X)
        return len(
            jax.make_jaxpr(lambda v, x: net(v.params, x, state=v.state))(v, X).eqns
        )

    assert size(2) == size(200)


def test_masks_go_to_every_copy():
    net = mp.Repeat(jnp.multiply, 3)
    same(net({}, X, 2 + 0 * X), 8 * X)


def test_a_repeat_that_cannot_be_says_why():
    with pytest.raises(ShapeMismatchError, match=r"body \(Repeat\).*\[5, 3\] of"):
        mp.Serial(body=mp.Repeat(Dense(3), 2)).init(KEY, X)
    v = mp.Repeat(Dense(4), 2).init(KEY, X)
    with pytest.raises(ShapeMismatchError, match=r"variables of 3 copies.*params/bias"):
        mp.Repeat(Dense(4), 3)(v.params, X)
    with pytest.raises(FieldError, match=r"Repeat\.remat.*Nearest: dots_saveable"):
        mp.Repeat(Dense(4), 2, remat="dots_savable")
    with pytest.raises(FieldError, match=r"Repeat\.times"):
        mp.Repeat(Dense(4), 0)


# --- Vmap --------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "out"), [(0, 0), (1, -1), (-1, 1), (2, 0)])
def test_vmap_is_a_loop_over_the_axis(axis, out):
    x = jax.random.normal(KEY, (3, 4, 5))
    net = mp.Vmap(Dense(2) >> jnp.tanh, in_axes=axis, out_axes=out)
    v = net.init(KEY, x)
    one = Dense(2) >> jnp.tanh
    rows = [one(v.params, jnp.take(x, i, axis)) for i in range(x.shape[axis])]
    same(net(v.params, x), jnp.stack(rows, out))


def test_each_index_draws_its_own_and_statistics_are_averaged():
    x = jnp.ones((3, 50, 4))
    y, _ = mp.Vmap(Dropout(0.5)).apply(Variables(), x, ctx=TRAIN)
    assert len({np.asarray(row).tobytes() for row in y}) == 3
    x = jax.random.normal(KEY, (3, 7, 4)) + jnp.arange(3.0)[:, None, None]
    net = mp.Vmap(BatchNorm(momentum=0.0))
    v = net.init(KEY, x)
    _, state = net.apply(v, x, ctx=TRAIN)
    same(state["mean"], x.mean((0, 1)), 1e-5)
    _, still = net.apply(v, x, ctx=Context())
    same(still, v.state)


def test_vmap_names_the_axis_that_is_not_there():
    net = mp.Serial(rows=mp.Vmap(jnp.add, in_axes=(0, None)))
    same(net({}, X, X[0]), X + X[:1])
    for bad in [(X,), (jnp.ones(()), X), (X, X, X)]:
        with pytest.raises(ShapeMismatchError, match=r"rows \(Vmap\): expects inputs"):
            net({}, *bad)
    with pytest.raises(ShapeMismatchError, match=r"all of one length"):
        mp.Vmap(jnp.add)({}, X, X[:3])


# --- Ensemble ----------------------------------------------------------------------


def test_copies_are_initialised_apart_and_answer_with_their_mean():
    net = mp.Ensemble(model=LAYER, size=3)
    v = net.init(KEY, X)
    kernels = v.params["model"]["dense"]["kernel"]
    assert kernels.shape == (3, 4, 4)
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.1
    own = Variables(v.params["model"], v.state["model"])
    each = [LAYER(c.params, X, state=c.state) for c in unrolled(own, 3)]
    same(net(v.params, X, state=v.state), sum(each) / 3, 1e-5)
    y, state = net.apply(v, X, ctx=TRAIN)
    assert y.shape == X.shape
    assert float(jnp.abs(state["model"]["norm"]["mean"]).sum()) > 0


def test_given_models_are_weighted():
    net = mp.Ensemble(jnp.sin, jnp.cos, weights=(2.0, 6.0))
    same(net({}, X), 0.25 * jnp.sin(X) + 0.75 * jnp.cos(X))
    every = mp.Ensemble(jnp.sin, jnp.cos, join=None)({}, X)
    same(every, jnp.stack([jnp.sin(X), jnp.cos(X)]))


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1,
                max_size=5))  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_votes_are_counted(answers):
    votes = np.asarray(answers)

    def ballot(i):
        def vote(x):
            return jax.nn.one_hot(votes[i], 4)

        vote.__name__ = f"vote_{i}"
        return vote

    def number(i):
        def vote(x):
            return jnp.asarray(votes[i])

        vote.__name__ = f"vote_{i}"
        return vote

    counts = np.stack([(votes == c).sum(0) for c in range(4)], -1)
    shares = mp.Ensemble(*map(ballot, range(len(votes))), join="vote")({}, X)
    same(shares, (counts / len(votes)).astype(np.float32))
    most = mp.Ensemble(*map(number, range(len(votes))), join="vote")({}, X)
    np.testing.assert_array_equal(most, counts.argmax(-1))


@pytest.mark.parametrize(
    ("args", "options", "said"),
    [
        ((), {}, r"got 0 models"),
        ((jnp.sin, jnp.cos), {"size": 2}, r"got 2 models and size 2"),
        ((jnp.sin,), {"size": 0}, r"Ensemble\.size"),
        ((jnp.sin,), {"join": "median"}, r"Ensemble\.join"),
        ((jnp.sin, jnp.cos), {"weights": (1.0,)}, r"Ensemble\.weights: expected 2"),
        ((jnp.sin, jnp.cos), {"weights": (0.0, 0.0)}, r"not all zero"),
        ((jnp.sin, jnp.cos), {"weights": (1.0, -1.0)}, r">= 0"),
    ],
)
def test_what_makes_no_ensemble_is_refused(args, options, said):
    with pytest.raises(FieldError, match=said):
        mp.Ensemble(*args, **options)


# --- Frozen ------------------------------------------------------------------------


def test_a_frozen_mapping_is_its_inference_and_no_optimizer_moves_it():
    net = mp.Serial(body=mp.Frozen(LAYER), head=Dense(1))
    trained = LAYER.init(KEY, X)
    v = net.init(KEY, X)
    v = Variables(v.params, {"body": mp.Frozen(LAYER).start(trained).state})
    same(
        mp.Frozen(LAYER)({}, X, state=v.state["body"]),
        LAYER(trained.params, X, state=trained.state),
    )
    assert list(v.params) == ["head"]
    step = mp.train.TrainStep(
        net, mp.losses.MeanSquaredError(), optax.adamw(0.1, weight_decay=0.5)
    )
    state = step.start(KEY, v).state
    for _ in range(3):
        _, state = step.apply(Variables({}, state), (X, X[:, :1]), ctx=TRAIN)
    held = mp.Frozen(LAYER).thaw(Variables({}, state["state"]["body"]))
    for path, leaf in leaf_paths(trained).items():
        np.testing.assert_array_equal(leaf_paths(held)[path], leaf, err_msg=path)
    moved = jnp.abs(state["params"]["head"]["kernel"] - v.params["head"]["kernel"])
    assert float(moved.max()) > 0.01


def test_gradients_flow_through_what_is_frozen_to_what_stands_before():
    net = mp.Frozen(Dense(3))
    v = net.init(KEY, X)
    g = jax.grad(lambda x: net({}, x, state=v.state).sum())(X)
    same(g, jnp.broadcast_to(v.state["params"]["kernel"].sum(1), X.shape))
    h = jax.grad(lambda s: net({}, X, state=s).sum())(v.state)
    assert float(jnp.abs(h["params"]["kernel"]).max()) == 0


def test_a_frozen_mapping_may_keep_its_training_mode():
    v = mp.Frozen(LAYER, train=True).init(KEY, X)
    _, state = mp.Frozen(LAYER, train=True).apply(v, X, ctx=TRAIN)
    assert float(jnp.abs(state["state"]["norm"]["mean"]).sum()) > 0
    _, state = mp.Frozen(LAYER).apply(v, X, ctx=TRAIN)
    assert float(jnp.abs(state["state"]["norm"]["mean"]).sum()) == 0


def test_params_given_to_a_frozen_mapping_are_refused_with_the_way_to_convert():
    v = Dense(3).init(KEY, X)
    with pytest.raises(MissingVariablesError, match=r"body \(Frozen\).*start\(var"):
        mp.Serial(body=mp.Frozen(Dense(3)))({"body": v.params}, X)


# --- Shared ------------------------------------------------------------------------

TIED = mp.Shared(
    mp.Serial(embed=Dense(6), act=jnp.tanh, head=Dense(4)),
    mp.Tie("head/kernel", to="embed/kernel", through=jnp.transpose),
)


def test_tied_params_exist_once_and_gather_every_gradient():
    v = TIED.init(KEY, X)
    assert list(leaf_paths(v.params)) == ["embed/bias", "embed/kernel", "head/bias"]

    def plain(kernel, head):
        hidden = jnp.tanh(X @ kernel + v.params["embed"]["bias"][None])
        return hidden @ head + v.params["head"]["bias"][None]

    kernel = v.params["embed"]["kernel"]
    same(TIED(v.params, X), plain(kernel, kernel.T), 1e-5)
    both = jax.grad(lambda a, b: (plain(a, b) ** 2).sum(), (0, 1))(kernel, kernel.T)
    got = jax.grad(lambda p: (TIED(p, X) ** 2).sum())(v.params)["embed"]["kernel"]
    same(got, both[0] + both[1].T, 1e-4)


def test_whole_branches_and_chains_of_ties_are_tied():
    net = mp.Serial(a=Dense(4), b=Dense(4), c=Dense(4))
    tied = mp.Shared(net, mp.Tie("b", to="a"), mp.Tie("c/kernel", to="a/kernel"))
    v = tied.init(KEY, X)
    assert list(leaf_paths(v.params)) == ["a/bias", "a/kernel", "c/bias"]
    same(tied(v.params, X), net(tied.whole(v.params), X))


def test_a_tie_that_cannot_be_says_why():
    net = mp.Serial(a=Dense(6), b=Dense(4))
    with pytest.raises(UnknownPathError, match=r"no params at b/kernle.*b/kernel"):
        mp.Shared(net, mp.Tie("b/kernle", to="a/kernel")).init(KEY, X)
    with pytest.raises(UnknownPathError, match=r"no params at z"):
        mp.Shared(net, mp.Tie("b/kernel", to="z")).init(KEY, X)
    with pytest.raises(ShapeMismatchError, match=r"float32\[6, 4\] for b/kernel, got"):
        mp.Shared(net, mp.Tie("b/kernel", to="a/kernel")).init(KEY, X)
    with pytest.raises(FieldError, match=r"Shared\.ties: expected Tie"):
        mp.Shared(net, ("b/kernel", "a/kernel"))


# --- Capture -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Block(mp.Model):
    def parts(self):
        return {"dense": Dense(4), "norm": BatchNorm(), "act": jnp.tanh}

    def forward(self, run, x):
        return x + run.act(run.norm(run.dense(x)))


DEEP = mp.Serial(
    first=Dense(4),
    body=mp.Repeat(Block(), 3),
    side=mp.Ensemble(model=Dense(4) >> jnp.sin, size=2),
    still=mp.Frozen(mp.Serial(norm=BatchNorm(), act=jnp.cos)),
    rows=mp.Vmap(Dense(2) >> jnp.exp, in_axes=0),
)


@pytest.mark.parametrize("train", [False, True])
def test_capture_changes_nothing_and_sees_everything_by_path(train):
    v = DEEP.init(KEY, X)
    ctx = dataclasses.replace(TRAIN, train=train)
    (y, seen), state = mp.Capture(DEEP, "*").apply(v, X, ctx=ctx)
    plain, plain_state = DEEP.apply(v, X, ctx=ctx)
    same((y, state), (plain, plain_state))
    shapes = {path: value.shape for path, value in seen.items()}
    assert shapes == {
        "first": (5, 4), "body": (5, 4),
        "body/dense": (3, 5, 4), "body/norm": (3, 5, 4), "body/act": (3, 5, 4),
        "side": (5, 4), "side/model": (2, 5, 4),
        "side/model/dense": (2, 5, 4), "side/model/sin": (2, 5, 4),
        "still": (5, 4), "still/norm": (5, 4), "still/act": (5, 4),
        "rows": (5, 2), "rows/dense": (5, 2), "rows/exp": (5, 2),
    }  # fmt: skip
    same(seen["rows"], y)
    same(seen["first"], Dense(4)(v.params["first"], X))
    same(seen["still/act"], jnp.cos(seen["still/norm"]))


def test_captured_activations_are_differentiable_outputs():
    net = mp.Serial(a=Dense(4), b=jnp.tanh)
    v = net.init(KEY, X)

    def penalty(params):
        _, seen = mp.Capture(net, "a")(params, X)
        return jnp.sum(seen["a"] ** 2)

    g = jax.jit(jax.grad(penalty))(v.params)
    direct = jax.grad(lambda p: jnp.sum(Dense(4)(p["a"], X) ** 2))(v.params)
    same(g, direct, 1e-5)


def test_captures_nest_and_may_stand_anywhere():
    inner = mp.Serial(a=Dense(4), b=jnp.tanh)
    net = mp.Serial(body=mp.Capture(inner, "a"), last=mp.Parallel(jnp.sum, Dict()))
    v = net.init(KEY, X)
    (_, seen), _ = mp.Capture(net, "body/b").apply(v, X, ctx=Context())
    assert list(seen) == ["body/b"]


@dataclasses.dataclass(frozen=True)
class Dict(mp.Mapping):
    def apply(self, variables, x, *, ctx):
        assert list(x) == ["a"]
        return x["a"], variables.state


def test_a_glob_that_sees_nothing_lists_what_there_is():
    net = mp.Serial(hidden=Dense(4), act=jnp.tanh)
    v = net.init(KEY, X)
    with pytest.raises(UnknownPathError, match=r"hiden names nothing.*Nearest: hidden"):
        mp.Capture(net, "hiden")(v.params, X)
    with pytest.raises(FieldError, match=r"Capture\.globs"):
        mp.Capture(net)


# --- Lift with params --------------------------------------------------------------


def affine(x, scale, shift, power=1):
    with jax.numpy_rank_promotion("allow"):
        return x**power * scale + shift


def test_a_function_with_parameter_specs_is_a_layer():
    layer = mp.Lift.of(affine, scale=mp.Param((-1,), 2.0), shift=mp.Param(), power=2)
    v = layer.init(KEY, X)
    assert {p: x.shape for p, x in leaf_paths(v.params).items()} == {
        "scale": (4,), "shift": (),
    }  # fmt: skip
    same(layer(v.params, X), 2 * X**2)
    started = mp.Lift.of(affine, scale=mp.Param((-1,), jax.nn.initializers.ones),
                         shift=mp.Param((-2, 1), 1.0))  # fmt: skip
    v = started.init(KEY, X)
    assert v.params["shift"].shape == (5, 1)
    same(started(v.params, X), X + 1)


@jax.custom_vjp
def clipped(x, limit):
    return x


clipped.defvjp(
    lambda x, limit: (x, limit),
    lambda limit, g: (jnp.clip(g, -limit, limit), jnp.zeros_like(limit)),
)


def test_a_custom_derivative_is_respected():
    net = mp.Serial(clip=mp.Lift.of(clipped, limit=mp.Param((), 0.5)))
    v = net.init(KEY, X)
    g = jax.grad(lambda x: 10.0 * net(v.params, x).sum())(X)
    same(g, jnp.full_like(X, 0.5))


def test_a_lifted_function_without_its_params_is_told():
    layer = mp.Serial(own=mp.Lift.of(affine, scale=mp.Param(), shift=mp.Param()))
    with pytest.raises(MissingVariablesError, match=r"own \(affine\): expects params"):
        layer({}, X)
    with pytest.raises(ShapeMismatchError, match=r"own.*at least 3 axes"):
        mp.Serial(own=mp.Lift.of(affine, scale=mp.Param((-3,)), shift=mp.Param())).init(
            KEY, X
        )
    with pytest.raises(FieldError, match=r"Param\.shape"):
        mp.Param(3)


# --- Model -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Twice(mp.Model):
    """Calls one part twice and one never."""

    def parts(self):
        return {"dense": Dense(4), "norm": BatchNorm(momentum=0.0), "idle": Dense(9)}

    def forward(self, run, x):
        kernel = run.params["dense"]["kernel"] if run.params.get("dense") else None
        y = run.norm(run("dense", run.dense(x)))
        return y if kernel is None else (y, kernel)


def test_a_part_called_twice_is_shared_and_one_never_called_has_no_params():
    v = Twice().init(KEY, X)
    assert list(leaf_paths(v.params)) == [
        "dense/bias", "dense/kernel", "norm/bias", "norm/scale",
    ]  # fmt: skip
    y, kernel = Twice()(v.params, X, state=v.state)
    once = Dense(4)(v.params["dense"], X)
    same(y, Dense(4)(v.params["dense"], once), 1e-4)
    same(kernel, v.params["dense"]["kernel"])
    _, state = Twice().apply(v, X, ctx=TRAIN)
    same(state["norm"]["mean"], Dense(4)(v.params["dense"], once).mean(0), 1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_a_part_called_twice_is_captured_at_its_last_call(train):
    v, ctx = Twice().init(KEY, X), dataclasses.replace(TRAIN, train=train)
    (y, seen), state = mp.Capture(Twice(), "*").apply(v, X, ctx=ctx)
    same((y, state), Twice().apply(v, X, ctx=ctx))
    dense = v.params["dense"]
    assert sorted(seen) == ["dense", "norm"]
    same(seen["dense"], Dense(4)(dense, Dense(4)(dense, X)), 1e-5)
    same(seen["norm"], y[0])


def test_a_model_initialises_as_its_parts_would():
    v = Block().init(KEY, X)
    own = Dense(4).init(mp.core.fold_name(KEY, "dense"), X)
    same(v.params["dense"], own.params)


@dataclasses.dataclass(frozen=True)
class Nest(mp.Model):
    depth: int

    def parts(self):
        return {"in": Nest(self.depth - 1) if self.depth else Count()}

    def forward(self, run, x):
        return run("in", run("in", x))


COUNTED = []


@dataclasses.dataclass(frozen=True)
class Count(mp.Mapping):
    def init(self, key, x):
        COUNTED.append(x.shape)
        return Variables({"w": jnp.ones(())})

    def apply(self, variables, x, *, ctx):
        return x * variables.params["w"], variables.state


def test_nesting_models_does_not_multiply_the_work():
    COUNTED.clear()
    Nest(8).init(KEY, X)
    assert len(COUNTED) < 40  # 2**8 if each level asked its own parts again


@dataclasses.dataclass(frozen=True)
class Named(mp.Model):
    name: str

    def parts(self):
        return {self.name: Dense(2)}

    def forward(self, run, x):
        return run.dense(x)


def test_a_models_mistakes_are_told_by_path():
    for name in ("a/b", "", "params", "rng"):
        with pytest.raises(NameCollisionError, match=r"Named\.parts"):
            Named(name).init(KEY, X)
    with pytest.raises(UnknownPathError, match=r"has no part 'dense'. Nearest: dens"):
        Named("dens").init(KEY, X)
    net = mp.Serial(body=Named("dense"))
    v = net.init(KEY, X)
    with pytest.raises(ShapeMismatchError, match=r"body/dense \(Dense\): params"):
        net(v.params, X[:, :3])
    for inputs in ((), (X, X)):
        with pytest.raises(ShapeMismatchError, match=r"\(Named\): expects the inp"):
            net(v.params, *inputs)
    with pytest.raises(TypeError, match=r"`parts\(self\)`"):
        mp.Model().init(KEY, X)
