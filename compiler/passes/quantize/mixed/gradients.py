"""Gradients of a loss with respect to weights, and its curvature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.errors import CalibrationError, CompilerError

if TYPE_CHECKING:
    from compiler.program import Program

Loss = Callable[..., Any]
"""Takes the outputs, then what a batch holds behind the inputs; returns a scalar."""

Sums = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""By path: of gradients, of their squares, and of curvatures."""


@dataclasses.dataclass(frozen=True, eq=False)
class Gradients:
    """What one backward pass for each batch tells, by the path of a weight.

    Attributes:
        loss: the mean over batches.
        batches: how many there were.
        examples: the leading extent of the first array of the first batch.
        mean: gradients, float32.
        square: their squares, float32.
        curvature: half the sum of the Hessian's diagonal times squared sizes.
    """

    loss: float
    batches: int
    examples: int
    mean: Mapping[str, jax.Array]
    square: Mapping[str, jax.Array]
    curvature: Mapping[str, float]


def gradients(
    program: Program,
    loss: Loss,
    batches: Iterable[Any],
    sizes: Mapping[str, jax.Array],
) -> Gradients:
    r"""Runs the batches, forward and backward.

    The curvature along $v = z \circ a$ with random signs $z$, drawn for each batch, is
    on average that of the Hessian's diagonal (Hutchinson, 1990):

    $$ \mathbb{E}_z\, v^\top H v = \sum_j H_{jj} a_j^2 $$

    Args:
        program: whose weights are meant.
        loss: takes the outputs, and what a batch holds behind the inputs.
        batches: tuples of the program's inputs and what the loss needs.
        sizes: by the paths of the weights, $a$.

    Raises:
        CalibrationError: if there are no batches, if a batch or the loss is not what
            was expected, or if a loss or a gradient is nan or infinite.
    """
    values = dict(zip(program.graph.paths, program.values, strict=True))
    weights = {path: values.pop(path) for path in sizes}
    step = jax.jit(_step(program, loss))
    sums, total, count, examples = _nothing(weights), 0.0, 0, 1
    for number, given in enumerate(batches):
        batch = split(program, given, number)
        taken = (sums, weights, values, sizes, number, *batch)
        check_loss(step, taken, number)
        sums, found, finite = step(*taken)
        _check_finite(float(found), finite, number)
        total, count = total + float(found), count + 1
        examples = _extent(batch[0]) if number == 0 else examples
    if not count:
        raise CalibrationError(
            "batches: expected at least one to measure the loss on, got none. Pass "
            "tuples of the program's inputs and what the loss needs."
        )
    mean, square, curvature = jax.tree.map(lambda array: array / count, sums)
    bends = {path: float(number) for path, number in curvature.items()}
    return Gradients(total / count, count, examples, mean, square, bends)


def _nothing(weights: Mapping[str, Any]) -> Sums:
    empty = {p: np.zeros(w.shape, np.float32) for p, w in weights.items()}
    return empty, dict(empty), dict.fromkeys(weights, np.float32(0.0))


def _step(program: Program, loss: Loss) -> Callable[..., Any]:
    """Adds a batch's gradients, their squares and its curvature to their sums."""

    def value(weights: Any, values: Any, inputs: Any, rest: Any) -> Any:
        leaves = [{**values, **weights}[path] for path in program.graph.paths]
        return loss(program.function(program.graph.pack(leaves), *inputs), *rest)

    def step(
        sums: Sums, weights: Any, values: Any, sizes: Any, number: Any, *batch: Any
    ) -> tuple[Sums, Any, Any]:
        def differentiated(weights: Any) -> Any:
            return jax.value_and_grad(value)(weights, values, *batch)

        along = _signed(sizes, number)
        (found, g), (_, turned) = jax.jvp(differentiated, (weights,), (along,))
        g = {path: array.astype(jnp.float32) for path, array in g.items()}
        finite = {path: jnp.isfinite(array).all() for path, array in g.items()}
        mean, square, curvature = sums
        mean = {p: mean[p] + g[p] for p in g}
        square = {p: square[p] + g[p] * g[p] for p in g}
        bends = {p: jnp.vdot(along[p], turned[p]).astype(jnp.float32) for p in g}
        curvature = {p: curvature[p] + 0.5 * bends[p] for p in g}
        return (mean, square, curvature), found, finite

    return step


def _signed(sizes: Mapping[str, jax.Array], number: Any) -> dict[str, jax.Array]:
    """Random signs for sizes, others for each batch and weight."""
    found = {}
    for place, (path, size) in enumerate(sizes.items()):
        # The default generator takes seconds to compile.
        key = jax.random.key(number * len(sizes) + place, impl="rbg")
        found[path] = size * jax.random.rademacher(key, size.shape, size.dtype)
    return found


def inputs_of(program: Program, batch: Any) -> tuple[Any, ...]:
    """The inputs a batch begins with."""
    count = len(program.graph.in_tree.children())
    return tuple(batch)[:count] if isinstance(batch, (tuple, list)) else (batch,)


def split(program: Program, batch: Any, number: int) -> tuple[Any, Any]:
    """The inputs of a batch, and what the loss takes of it."""
    inputs = inputs_of(program, batch)
    count = len(program.graph.in_tree.children())
    if len(inputs) < count:
        raise CalibrationError(
            f"batch {number}: expected a tuple of the program's {count} inputs and "
            f"what the loss needs, got {len(inputs)} of them. Pass (x, target), say."
        )
    rest = tuple(batch)[count:] if isinstance(batch, (tuple, list)) else ()
    return inputs, rest


def check_loss(step: Callable[..., Any], given: Any, number: int) -> None:
    """Says what is wrong with a loss before anything runs."""
    try:
        jax.eval_shape(step, *given)
    except CompilerError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:
        raise CalibrationError(
            f"batch {number}: expected loss(outputs, {len(given[-1])} more from the "
            f"batch) to give a floating scalar that can be differentiated, got: "
            f"{str(error).splitlines()[0]} Write the loss as a mean over examples."
        ) from error


def _check_finite(loss: float, finite: Mapping[str, Any], number: int) -> None:
    if not math.isfinite(loss):
        raise CalibrationError(
            f"batch {number}: expected a finite loss, got {loss}. Look at the batch, "
            "or leave it out."
        )
    for path, all_are in finite.items():
        if not all_are:
            raise CalibrationError(
                f"{path}: expected finite gradients, got inf or nan on batch {number}. "
                "Look at the loss's derivative there, or leave the leaf out with skip."
            )


def _extent(inputs: Any) -> int:
    shapes = [jnp.shape(array) for array in jax.tree.leaves(inputs)]
    return max(1, next((shape[0] for shape in shapes if shape), 1))
