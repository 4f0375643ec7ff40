"""ResNet-18 at half its width: the numbers Torch-Pruning gives for it.

They count, for one image of 224 by 224 and 1000 classes, a multiplication for each of
a convolution or the last layer, and besides: one addition for each bias of the last
layer, two operations for each number a batch norm gives, one for each a ReLU gives and
one for each a pooling takes.
"""

import flax.linen as nn
import jax
import numpy as np
import pytest

import compiler as mc
from compiler import jaxprs
from compiler.cost import equation_flops
from compiler.passes.prune.structure import shrink, structure


class Block(nn.Module):
    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        def conv(size, strides, name):
            return nn.Conv(
                self.features,
                (size, size),
                strides,
                padding=size // 2,
                use_bias=False,
                name=name,
            )

        y = nn.relu(norm("n1")(conv(3, self.strides, "c1")(x)))
        y = norm("n2")(conv(3, 1, "c2")(y))
        if self.strides > 1:
            x = norm("n0")(conv(1, self.strides, "c0")(x))
        return nn.relu(x + y)


def norm(name):
    return nn.BatchNorm(use_running_average=True, name=name)


class ResNet18(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False, name="stem")(x)
        x = nn.relu(norm("norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage in range(4):
            for block in range(2):
                strides = 2 if stage and not block else 1
                x = Block(64 * 2**stage, strides, name=f"b{stage}{block}")(x)
        return nn.Dense(1000, name="head")(x.mean((1, 2)))


def operations(graph):
    """What Torch-Pruning counts of one image."""
    total = 0
    for equation, _ in jaxprs.nested(graph.jaxpr):
        name = equation.primitive.name
        taken = equation.invars[0].aval.size if equation.invars else 0
        given = equation.outvars[0].aval.size if equation.outvars else 0
        if name == "conv_general_dilated":  # each has a batch norm after it
            kernel = equation.invars[1].aval.shape
            total += given * int(np.prod(kernel[:-1])) + 2 * given
        elif name == "dot_general":
            total += equation_flops(equation) // 2 + given  # and a bias
        elif name == "max":
            total += given
        elif name in ("reduce_window_max", "reduce_sum"):
            total += taken
    return total


def count(graph):
    leaves = [leaf for leaf in graph.leaves if leaf.path.startswith("params/")]
    return sum(int(np.prod(leaf.spec.shape)) for leaf in leaves)


@pytest.fixture(scope="module")
def graph():
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    model = ResNet18()
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return mc.trace(model.apply, variables, image).graph


def test_the_whole_is_what_torch_pruning_counts(graph):
    assert (operations(graph), count(graph)) == (1_822_177_768, 11_689_512)


def test_half_of_every_width_is_what_torch_pruning_counts(graph):
    found = structure(graph)
    assert len(found.groups) == 12
    removed = {group.name: np.arange(group.size // 2) for group in found.groups}
    small = shrink(found, found.plan(removed))
    assert (operations(small), count(small)) == (487_202_536, 3_055_880)
