"""Whatever a stock layer is given, it computes or says in our words what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import Context, Serial, Variables
from mapping.errors import MappingError
from mapping.registry import lookup
from mapping.testing.probe import Probe

KEY = jax.random.key(0)
NAMES = (
    "activation", "attend", "avg_pool", "batch_norm", "bilinear", "conv",
    "conv_transpose", "dense", "dense_general", "depthwise_conv", "dropout", "einsum",
    "embed", "flatten", "global_avg_pool", "global_max_pool", "group_norm",
    "instance_norm", "layer_norm", "max_pool", "neural_tensor", "parameter", "permute",
    "position_embedding", "prelu", "reshape", "rms_norm", "separable_conv",
    "sinusoidal_position", "spectral_norm", "swish", "tensor_train_dense",
    "weight_norm",
)  # fmt: skip
WITHOUT_PARAMS = {
    "activation", "attend", "avg_pool", "dropout", "flatten", "global_avg_pool",
    "global_max_pool", "max_pool", "parameter", "permute", "reshape",
    "sinusoidal_position", "rms_norm",
}  # fmt: skip
"""A Parameter's value is whatever it is; the example of RMSNorm has no scale."""
WITH_PARAMS = [name for name in NAMES if name not in WITHOUT_PARAMS]
every_layer = pytest.mark.parametrize("name", NAMES)


@functools.cache
def probe(name):
    """The last example, which has the most fields."""
    return Probe.of(lookup("layer", name).make_examples()[-1])


def nested(layer):
    return Serial(net=Serial(own=layer))


def variables(name, params=None, state=None):
    own = probe(name).variables
    params = own.params if params is None else params
    state = own.state if state is None else state
    return Variables({"net": {"own": params}}, {"net": {"own": state}})


def run(name, own, *inputs, train=False):
    """Traces the layer, which is when it finds fault; computes nothing."""
    arrays = [x for x in inputs if hasattr(x, "dtype")]

    def forward(own, arrays):
        rest = iter(arrays)
        given = [next(rest) if hasattr(x, "dtype") else x for x in inputs]
        ctx = Context(KEY, train=train)
        return nested(probe(name).example.mapping).apply(own, *given, ctx=ctx)[0]

    return jax.eval_shape(forward, own, arrays)


def misfits(x):
    """Inputs that a layer is given by mistake, in place of one that it takes."""
    shape = x.shape
    yield jnp.ones((), x.dtype)
    yield jnp.ones((2, 2, 2, 2, 7), x.dtype)
    yield jnp.ones((*shape[:-1], shape[-1] + 1), x.dtype)
    yield jnp.ones((*shape[:-1], 0), x.dtype)
    yield jnp.ones(shape, jnp.int32)
    yield np.ones(shape, bool)
    yield jax.random.split(KEY, 3)
    yield [[1.0, 2.0]]
    yield None


def told(use):
    """What an error says, or None where there is none."""
    try:
        use()
    except MappingError as error:
        return str(error)
    return None


@every_layer
def test_inputs_that_do_not_fit_are_named_or_computed(name):
    good = probe(name).inputs
    for place, x in enumerate(good):
        for wrong in misfits(x):
            given = (*good[:place], wrong, *good[place + 1 :])
            message = told(lambda given=given: run(name, variables(name), *given))
            assert message is None or message.startswith("net/own")


@every_layer
def test_another_number_of_inputs_is_named(name):
    good = probe(name).inputs
    for given in ((), (*good, *good, jnp.ones(2))):
        if len(given) == len(good):
            continue
        message = told(lambda given=given: run(name, variables(name), *given))
        assert message is not None
        assert message.startswith("net/own")


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_params_of_another_shape_are_named(name):
    params = probe(name).variables.params

    def larger(x):
        return jnp.ones((*(n + 1 for n in x.shape), 2), x.dtype)

    wrong = variables(name, params=jax.tree.map(larger, params))
    message = told(lambda: run(name, wrong, *probe(name).inputs))
    assert message is not None
    assert message.startswith("net/own")


@every_layer
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_outputs_have_the_dtype_of_params_and_inputs(name, dtype):
    with jax.enable_x64(True):
        own, inputs = probe(name).cast(dtype)
        tree = Variables({"net": {"own": own.params}}, {"net": {"own": own.state}})
        for train in (False, True):
            assert run(name, tree, *inputs, train=train).dtype == dtype


@every_layer
def test_params_start_in_float32_whatever_the_inputs(name):
    with jax.enable_x64(True):
        inputs = probe(name).cast("float64")[1]
        made = jax.eval_shape(probe(name).example.mapping.init, KEY, *inputs)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} <= {"float32"}


@every_layer
def test_inputs_and_params_of_different_width_meet_in_the_wider(name):
    with jax.enable_x64(True):
        inputs = probe(name).cast("float64")[1]
        y = run(name, variables(name), *inputs)
    floating = any(jnp.issubdtype(x.dtype, jnp.floating) for x in inputs)
    assert y.dtype == ("float64" if floating else "float32")
