"""Training: the step is the textbook's, compiled once, and the same every time."""

import dataclasses
import functools
import io
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapping import Context, Lift, Mapping, Serial, Variables, leaf_paths
from mapping.core import fold_name
from mapping.data import batches
from mapping.errors import DataError, MappingError
from mapping.layers import BatchNorm, Dense, Dropout, Flatten
from mapping.losses import CrossEntropy, MeanSquaredError
from mapping.metrics import Accuracy
from mapping.train import History, TrainStep, evaluate, fit, loop, predict
from mapping.train.progress import progress

rng = np.random.default_rng(0)
X = rng.normal(size=(24, 3)).astype(np.float32)
Y = (X @ np.float32([[1], [-2], [3]])).astype(np.float32)
LABELS = (Y[:, 0] > 0).astype(np.int32)
KEY = jax.random.key(0)
TRAIN = Context(train=True)
SGD = optax.sgd(0.05, momentum=0.9)

# The default initialiser takes longer to compile than all the rest.
dense = functools.partial(Dense, kernel_init=jax.nn.initializers.uniform(1.0))
NET = Serial(hidden=dense(4), norm=BatchNorm(), act=jnp.tanh, head=dense(1))
NOISY = Serial(hidden=dense(4), norm=BatchNorm(), drop=Dropout(0.5), head=dense(1))


@dataclasses.dataclass(frozen=True)
class Counted(Mapping):
    """The identity; counts how often it is traced, in training and in all."""

    def apply(self, variables, x, *, ctx):
        traces.append(ctx.train)
        return x, variables.state


@dataclasses.dataclass(frozen=True)
class Scale(Mapping):
    """A custom layer as the documentation writes one."""

    def init(self, key, x):
        return Variables({"scale": jnp.full(x.shape[-1:], 1.0)})

    def apply(self, variables, x, *, ctx):
        return x * variables.params["scale"][None], variables.state


@dataclasses.dataclass(frozen=True)
class Mode(Mapping):
    """One in training, zero in inference; passes a gradient on."""

    def apply(self, variables, x, *, ctx):
        return x * 0 + float(ctx.train), variables.state


@dataclasses.dataclass(frozen=True)
class Draw(Mapping):
    """Random numbers in training."""

    def apply(self, variables, x, *, ctx):
        drawn = jax.random.uniform(ctx.rng(), x.shape) if ctx.train else x
        return drawn, variables.state


@dataclasses.dataclass(frozen=True)
class Product(Mapping):
    """Takes two inputs."""

    def apply(self, variables, x, y, *, ctx):
        return x * y, variables.state


@dataclasses.dataclass(frozen=True)
class Plain(Mapping):
    """Starts from a Python number."""

    def init(self, key, x):
        return Variables({"scale": 2.0})

    def apply(self, variables, x, *, ctx):
        return x * variables.params["scale"], variables.state


def distance(prediction, target):
    return jnp.abs(prediction - target).mean()


class Net(nn.Module):
    """`NET` as flax writes it."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, name="hidden")(x)
        x = nn.BatchNorm(not train, momentum=0.9, name="norm", use_fast_variance=False)(
            x
        )
        return nn.Dense(1, name="head")(jnp.tanh(x))


traces = []


def train(model=NET, data=(X, Y), **options):
    standard = {
        "loss": MeanSquaredError(),
        "optimizer": SGD,
        "epochs": 2,
        "batch_size": 8,
    }
    return fit(model, data, **(standard | options))


def bits(tree):
    return {path: np.asarray(x).tolist() for path, x in leaf_paths(tree).items()}


def plain(state):
    """A step's state with its key as numbers."""
    return bits({**state, "key": jax.random.key_data(state["key"])})


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


# The step


def test_a_step_equals_a_hand_written_optax_loop_with_its_batch_statistics():
    optimizer = optax.adamw(0.01)
    step = TrainStep(NET, MeanSquaredError(), optimizer)
    own = jax.jit(step.init)(KEY, (X[:8], Y[:8]))
    update = jax.jit(step.apply)

    params = own.state["params"]
    stats = {"norm": own.state["state"]["norm"]}
    moments = optimizer.init(params)

    @jax.jit
    def by_hand(params, stats, moments, x, y):
        def objective(params):
            output, changed = Net().apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean((output - y) ** 2), changed["batch_stats"]

        (loss, stats_), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return loss, optax.apply_updates(params, updates), stats_, moments

    for x, y in batches((X, Y), 8, seed=0):
        logs, state = update(own, (x, y), ctx=TRAIN)
        own = Variables({}, state)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            loss, params, stats, moments = by_hand(params, stats, moments, x, y)
        np.testing.assert_allclose(logs["loss"], loss, rtol=1e-6)

    for ours, theirs in ((state["params"], params), (state["state"], stats)):
        assert set(leaf_paths(ours)) == set(leaf_paths(theirs))
        for path, leaf in leaf_paths(ours).items():
            expected = leaf_paths(theirs)[path]
            np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-6)


def test_the_model_of_a_step_starts_from_the_key_s_init():
    step = TrainStep(NET, MeanSquaredError(), SGD)
    state = step.init(KEY, (X, Y)).state
    model = NET.init(fold_name(KEY, "init"), X)
    assert bits(state["params"]) == bits(model.params)
    assert bits(state["state"]) == bits(model.state)
    assert state["key"] == KEY
    assert int(state["step"]) == 0


def test_a_step_has_no_params_and_counts_itself():
    step = TrainStep(dense(1), MeanSquaredError(), SGD)
    update = jax.jit(step.apply)
    v = step.init(KEY, (X, Y))
    assert v.params == {}
    for number in (1, 2):
        _, state = update(v, (X, Y), ctx=TRAIN)
        v = Variables({}, state)
        assert int(state["step"]) == number
        assert state["key"] == KEY


def test_the_randomness_of_a_step_is_its_number_folded_into_the_root_key():
    step = TrainStep(Serial(draw=Draw()), Lift(mean), SGD)
    v = step.init(KEY, (X, Y))
    for number in range(3):
        logs, state = step.apply(v, (X, Y), ctx=TRAIN)
        key = fold_name(jax.random.fold_in(KEY, number), "draw/")
        assert logs["loss"] == jax.random.uniform(key, X.shape).mean()
        v = Variables({}, state)


def mean(prediction, target):
    return prediction.mean()


def test_a_step_can_be_replayed_from_its_state():
    step = TrainStep(Dropout() >> dense(1), MeanSquaredError(), optax.adam(0.1))
    update = jax.jit(step.apply)
    v = step.init(KEY, (X, Y))
    _, state = update(v, (X, Y), ctx=TRAIN)
    saved = Variables({}, jax.tree.map(jnp.copy, state))
    (one, first), (two, second) = (
        update(v, (X, Y), ctx=TRAIN) for v in (Variables({}, state), saved)
    )
    assert one["loss"] == two["loss"]
    assert plain(first) == plain(second)


def test_a_step_is_a_value():
    def build():
        return TrainStep(Serial(Dense(2), jnp.tanh), CrossEntropy(0.1), SGD)

    assert build() == build()
    assert hash(build()) == hash(build())


# The loop


@pytest.fixture(scope="module")
def noisy():
    """A model with statistics and dropout, trained and validated."""
    return train(NOISY, seed=3, validation=(X, Y))


def test_fit_is_its_step_over_the_batches_of_each_epoch_and_validation_moves_nothing(
    noisy,
):
    fitted = noisy
    step = TrainStep(NOISY, MeanSquaredError(), SGD)
    state = jax.jit(step.init)(jax.random.key(3), (X[:8], Y[:8])).state
    update = jax.jit(lambda s, b: step.apply(Variables({}, s), b, ctx=TRAIN))
    losses = []
    for epoch in (1, 2):
        for batch in batches((X, Y), 8, seed=3, epoch=epoch):
            logs, state = update(state, batch)
            losses.append(float(logs["loss"]))
    assert plain(fitted.state) == plain(state)
    assert bits(fitted.variables.params) == bits(state["params"])
    assert bits(fitted.variables.state) == bits(state["state"])
    expected = np.float32(losses).reshape(2, 3).mean(1)
    np.testing.assert_allclose(fitted.history.column("loss"), expected, rtol=1e-6)


@pytest.mark.parametrize("start", ["fresh", "given"])
def test_fit_compiles_its_step_once(start):
    model = Serial(count=Counted(), norm=BatchNorm(), drop=Dropout(), head=dense(1))
    variables = model.init(KEY, X) if start == "given" else None
    traces.clear()
    train(model, epochs=3, variables=variables, optimizer=optax.adam(0.01))
    assert traces.count(True) == 1


@pytest.mark.parametrize("start", ["fresh", "given"])
def test_fit_compiles_its_step_once_for_a_layer_as_the_documentation_writes_it(start):
    model = Serial(count=Counted(), scale=Scale())
    variables = model.init(KEY, X) if start == "given" else None
    traces.clear()
    train(model, (X, X), epochs=2, variables=variables, optimizer=optax.adam(0.01))
    assert traces.count(True) == 1


def test_the_state_of_a_step_is_donated_to_the_next(monkeypatch):
    donated, epoch = [], loop._epoch

    def watched(update, state, shuffled):
        def step(state, batch):
            (kernel,) = jax.tree.leaves(state["params"]["kernel"])
            result = update(state, batch)
            donated.append(kernel.is_deleted())
            return result

        return epoch(step, state, shuffled)

    monkeypatch.setattr(loop, "_epoch", watched)
    train(dense(1), epochs=1)
    assert donated
    assert all(donated)


def test_validation_compiles_once_however_many_epochs_there_are():
    model = Serial(count=Counted(), head=dense(1))
    train(model, epochs=1, validation=(X[:7], Y[:7]))
    traces.clear()
    train(model, epochs=3, validation=(X[:7], Y[:7]))
    assert traces.count(True) == 1
    assert traces.count(False) == 0  # an equal model was compiled for it before


def test_one_seed_gives_one_run_and_another_seed_another(noisy):
    same, other = (train(NOISY, seed=seed, validation=(X, Y)) for seed in (3, 4))
    assert plain(noisy.state) == plain(same.state)
    assert without_seconds(noisy.history) == without_seconds(same.history)
    assert bits(noisy.variables.params) != bits(other.variables.params)


def test_training_learns():
    fitted = train(dense(1), epochs=40, optimizer=optax.sgd(0.1))
    kernel = np.asarray(fitted.variables.params["kernel"])
    np.testing.assert_allclose(kernel, [[1], [-2], [3]], atol=1e-3)
    assert fitted.history.column("loss")[-1] < 1e-5


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
def test_the_caller_s_variables_are_usable_and_unchanged_afterwards(kind):
    model = BatchNorm() >> dense(1)
    variables = jax.tree.map(kind, model.init(KEY, X))
    before, predicted = bits(variables), predict(model, variables, X)
    assert bits(train(model, variables=variables).variables) != before
    assert bits(variables) == before
    np.testing.assert_array_equal(predict(model, variables, X), predicted)


def test_what_one_fit_gave_another_goes_on_from_without_eating_it(noisy):
    before, state = bits(noisy.variables), plain(noisy.state)
    second = train(NOISY, variables=noisy.variables)
    assert bits(noisy.variables) == before
    assert plain(noisy.state) == state
    assert bits(second.variables) != before


def test_an_optimizer_whose_state_is_the_params_is_not_eaten_either():
    averaged = optax.chain(
        optax.sgd(0.1), optax.contrib.schedule_free(optax.identity(), learning_rate=0.1)
    )
    variables = dense(1).init(KEY, X)
    for start in (None, variables):
        fitted = train(dense(1), variables=start, optimizer=averaged)
        assert np.isfinite(fitted.history.column("loss")).all()


@pytest.mark.parametrize(
    "optimizer",
    [optax.polyak_sgd(), optax.lbfgs()],
    ids=["its value", "the function"],
)
def test_an_optimizer_that_asks_for_the_loss_is_given_it(optimizer):
    losses = train(dense(1), optimizer=optimizer).history.column("loss")
    assert losses[1] < losses[0]


def test_each_epoch_is_a_row_and_the_log_is_called_with_it():
    rows = []
    fitted = train(
        epochs=3,
        validation=(X, Y),
        metrics={"error": MeanSquaredError()},
        log=rows.append,
    )
    names = ["epoch", "loss", "validation loss", "error", "seconds"]
    assert [list(row) for row in fitted.history.rows] == [names] * 3
    assert fitted.history.column("epoch") == [1, 2, 3]
    assert fitted.history.column("error") == fitted.history.column("validation loss")
    assert rows == fitted.history.rows
    assert all(type(row[name]) is float for row in rows for name in names[1:])


def test_training_is_in_training_mode_and_validation_in_inference_mode():
    fitted = train(Mode(), (X, X * 0), epochs=1, validation=(X, X * 0))
    (row,) = fitted.history.rows
    assert (row["loss"], row["validation loss"]) == (1.0, 0.0)


def test_validation_uses_the_running_statistics_and_no_dropout(noisy):
    v = noisy.variables
    expected = np.mean((NOISY(v.params, X, state=v.state) - Y) ** 2)
    last = noisy.history.column("validation loss")[-1]
    assert last == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["loss", "epoch", "validation loss"])
def test_a_metric_cannot_take_the_name_of_another_column(name):
    with pytest.raises(MappingError, match=name):
        train(validation=(X, Y), metrics={name: MeanSquaredError()})


# Data a user has


def test_lists_numbers_and_float64_train_as_float32_arrays_do():
    net, loss = dense(2), CrossEntropy()
    expected = train(net, (X, LABELS), loss=loss)
    for data in (
        (X.tolist(), LABELS.tolist()),
        [X.astype(np.float64), jnp.asarray(LABELS)],
    ):
        fitted = train(net, data, loss=loss, validation=data)
        assert bits(fitted.variables) == bits(expected.variables)


def test_images_and_labels_in_bytes_train_float32_params():
    images = np.abs(X * 50).astype(np.uint8).reshape(24, 3, 1)
    data = (images, LABELS.astype(np.uint8))
    with jax.numpy_dtype_promotion("standard"):
        fitted = train(
            Flatten() >> dense(2),
            data,
            loss=CrossEntropy(),
            validation=data,
            metrics={"accuracy": Accuracy()},
        )
    kernel = fitted.variables.params["dense"]["kernel"]
    assert kernel.dtype == np.float32
    assert np.isfinite(kernel).all()


@pytest.mark.parametrize("count", [1, 5])
def test_fewer_examples_than_a_batch_make_one_step_an_epoch(count):
    fitted = train(dense(1), (X[:count], Y[:count]), epochs=3, batch_size=32)
    assert int(fitted.state["step"]) == 3


def test_a_model_of_two_inputs_takes_them_before_the_target():
    model = Serial(product=Product(), head=dense(1))
    fitted = train(model, (X, X, Y), validation=(X, X, Y))
    expected = model(fitted.variables.params, X, X)
    np.testing.assert_allclose(
        predict(model, fitted.variables, X, X), expected, rtol=1e-6, atol=1e-6
    )


def test_functions_are_lifted_wherever_a_mapping_is_asked_for():
    fitted = train(
        jnp.tanh,
        (X, X),
        loss=distance,
        batch_size=24,
        validation=(X, X),
        metrics={"distance": distance},
    )
    for name in ("loss", "validation loss", "distance"):
        values = fitted.history.column(name)
        assert values == pytest.approx([float(distance(np.tanh(X), X))] * 2, rel=1e-5)


def test_params_that_start_as_python_numbers_train():
    fitted = train(Plain(), (X, 3 * X), epochs=30, optimizer=optax.sgd(0.1))
    assert fitted.variables.params["scale"] == pytest.approx(3, abs=1e-3)


# Bad data

BAD = {
    "nothing": ((), "got nothing"),
    "no target": ((X,), r"got one array float32\[24, 3\]"),
    "unequal lengths": ((X, Y[:5]), r"got float32\[24, 3\], float32\[5, 1\]"),
    "no examples": ((X[:0], Y[:0]), r"got float32\[0, 3\], float32\[0, 1\]"),
    "a scalar target": ((X, 3.0), r"got float32\[24, 3\], float64\[\]"),
    "None": ((X, None), r"expected numbers, got object\[\]"),
    "a dict": (({"x": X}, Y), r"expected numbers, got object\[\]"),
}


@pytest.mark.parametrize(("data", "got"), BAD.values(), ids=BAD.keys())
def test_data_that_does_not_fit_together_is_refused_before_anything_is_traced(
    data, got
):
    traces.clear()
    with pytest.raises(DataError, match=got):
        train(Counted(), data)
    assert traces == []


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 0}, "size: expected at least 1 example in a batch, got 0"),
    ],
    ids=["epochs", "batch size"],
)
def test_numbers_that_make_no_run_are_refused(options, got):
    with pytest.raises(DataError, match=got):
        train(dense(1), **options)


def test_a_negative_batch_size_is_refused():
    traces.clear()
    with pytest.raises(DataError, match="batch, got -1"):
        train(Serial(Counted(), dense(1)), batch_size=-1)
    assert traces == []


@pytest.mark.parametrize(
    "validation",
    [(X, Y[:5]), (X,), (), (X[:0], Y[:0])],
    ids=["unequal", "no target", "nothing", "no examples"],
)
def test_bad_validation_data_is_refused_before_anything_is_traced(validation):
    traces.clear()
    with pytest.raises(DataError):
        train(Serial(Counted(), dense(1)), validation=validation)
    assert traces == []


@pytest.mark.parametrize(
    "data",
    [
        (X, LABELS.astype(str)),
        (X.astype(object), Y),
        ([[1.0, 2.0], [3.0]], [0, 1]),
        X,
    ],
    ids=["strings", "objects", "ragged", "an array for the tuple"],
)
def test_data_that_is_no_numbers_is_refused(data):
    with pytest.raises(DataError):
        train(dense(2), data, loss=CrossEntropy())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"optimizer": optax.adam}, id="no optimizer"),
        pytest.param({"variables": {"kernel": X}}, id="params for variables"),
        pytest.param({"seed": -1}, id="a negative seed"),
        pytest.param({"loss": jnp.subtract}, id="a loss of no scalar"),
        pytest.param({"epochs": 1.5}, id="half an epoch"),
        pytest.param({"metrics": [Accuracy()]}, id="metrics without names"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(options):
    with pytest.raises(MappingError):
        train(dense(1), **options)


def test_variables_of_another_model_are_refused():
    with pytest.raises(MappingError, match=r"\(Dense\): params do not fit"):
        train(dense(2), variables=dense(1).init(KEY, X))


# Prediction


@given(st.integers(1, 12), st.integers(1, 14))
@settings(deadline=None, max_examples=12, database=None)
def test_predict_equals_the_direct_call_whatever_the_batch_size(count, size):
    x = X[:count]
    predicted = predict(Flatten() >> jnp.negative, Variables(), x, batch_size=size)
    np.testing.assert_array_equal(predicted, -x)


def test_predict_is_inference_with_the_given_state(noisy):
    v = noisy.variables
    expected = NOISY(v.params, X, state=v.state)
    predicted = predict(NOISY, v, X, batch_size=7)
    assert isinstance(predicted, np.ndarray)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)


def test_a_short_last_batch_is_computed_by_the_same_compiled_program():
    traces.clear()
    predict(Counted(), Variables(), X, batch_size=7)
    assert traces == [False]
    predict(Counted(), Variables(), X[:20], batch_size=7)
    assert traces == [False]


def test_predict_gives_trees_of_outputs_back_as_trees():
    model = Lift(both)
    predicted = predict(model, Variables(), X, batch_size=10)
    np.testing.assert_array_equal(predicted["sum"], X.sum(-1))
    np.testing.assert_array_equal(predicted["self"][0], X)


def both(x):
    return {"sum": x.sum(-1), "self": (x,)}


def test_predict_takes_lists_and_float64():
    expected = predict(Counted(), Variables(), X)
    for x in (X.tolist(), X.astype(np.float64), jnp.asarray(X)):
        np.testing.assert_array_equal(predict(Counted(), Variables(), x), expected)


@pytest.mark.parametrize(
    ("inputs", "size"),
    [((X[:0],), 4), ((X, X[:3]), 4), ((X[:3], X), 4), ((X,), 0)],
    ids=["no examples", "fewer of the second", "fewer of the first", "batch of none"],
)
def test_predict_refuses_inputs_that_make_no_batches(inputs, size):
    with pytest.raises(DataError):
        predict(Counted(), Variables(), *inputs, batch_size=size)


@pytest.mark.parametrize("inputs", [(), (3.0,)], ids=["none", "a number"])
def test_predict_without_arrays_is_refused(inputs):
    with pytest.raises(DataError):
        predict(Counted(), Variables(), *inputs)


def test_evaluate_measures_the_whole_data_set_whatever_the_batch_size():
    logits = np.concatenate([X, -X[:, :1]], 1)
    labels = np.arange(24) % 4
    metrics = {"accuracy": Accuracy(), "loss": CrossEntropy()}
    results = [
        evaluate(Counted(), Variables(), (logits, labels), metrics, batch_size=size)
        for size in (1, 7, 24, 100)
    ]
    assert results == [results[0]] * 4
    assert results[0]["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    assert results[0]["loss"] == float(CrossEntropy()({}, logits, labels))


@pytest.mark.parametrize("data", [(X, X[:3]), (X,)], ids=["unequal", "no target"])
def test_evaluate_refuses_data_that_does_not_fit_together(data):
    with pytest.raises(DataError):
        evaluate(Counted(), Variables(), data, {"error": MeanSquaredError()})


# History

HISTORY = History(
    [
        {"epoch": 1, "loss": 0.5, "seconds": 1.0},
        {"epoch": 2, "loss": 0.25, "seconds": 1},
    ]
)


def test_a_history_gives_its_columns():
    assert HISTORY.column("loss") == [0.5, 0.25]


def test_a_saved_history_reads_back_as_it_was(tmp_path):
    path = HISTORY.save(tmp_path / "new" / "history.json")
    assert json.loads(path.read_text()) == HISTORY.rows


@pytest.mark.parametrize(
    ("name", "start"), [("h.png", b"\x89PNG"), ("new/h.svg", b"<?xml")]
)
def test_a_plotted_history_is_a_picture_in_a_file(tmp_path, name, start):
    path = HISTORY.plot(str(tmp_path / name))
    assert path == tmp_path / name
    assert path.read_bytes().startswith(start)


def test_plotting_leaves_the_user_s_matplotlib_as_it_was(tmp_path):
    before = mpl.rcParams["backend"]
    mpl.use("svg")
    try:
        HISTORY.plot(tmp_path / "h.png")
        assert mpl.get_backend().lower() == "svg"
    finally:
        mpl.use(before)


def test_plotting_a_history_of_nothing_is_refused(tmp_path):
    with pytest.raises(MappingError):
        History().plot(tmp_path / "h.png")


def test_plotting_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "mapping\[viz\]"'):
        HISTORY.plot(tmp_path / "h.png")


# Progress


class Terminal(io.StringIO):
    """What rich takes for a terminal."""

    def isatty(self):
        return True


def run_progress():
    with progress("training", 2) as advance:
        advance("loss 0.5")
        advance("loss 0.25")


def test_training_prints_nothing_where_there_is_no_terminal(capfd):
    train(dense(1), validation=(X, Y))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def colourless(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_progress_is_shown_on_a_terminal(monkeypatch, colourless):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run_progress()
    for text in ("training", "2/2", "loss 0.25"):
        assert text in terminal.getvalue()


def test_progress_is_silent_in_a_file(monkeypatch, colourless):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    run_progress()
    assert file.getvalue() == ""


def test_progress_lets_errors_through():
    with pytest.raises(KeyError, match="mine"), progress("training", 2):
        raise KeyError("mine")
