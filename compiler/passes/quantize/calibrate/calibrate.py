"""One pass over batches: what the activations of a program are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from compiler.errors import CalibrationError, VariablesMismatchError
from compiler.extents import accepted, as_arrays
from compiler.graph import Graph, is_abstract
from compiler.passes.quantize.calibrate.histogram import infinite
from compiler.passes.quantize.calibrate.measures import PLAIN, Measurements
from compiler.passes.quantize.calibrate.observe import observe
from compiler.passes.quantize.calibrate.statistics import Calibration
from compiler.passes.quantize.calibrate.totals import Totals
from compiler.passes.quantize.calibrate.watched import Watched, watched
from mapping.core import describe

if TYPE_CHECKING:
    from compiler.program import Program


def calibrate(
    program: Program,
    batches: Iterable[Any],
    *,
    hessians: bool = False,
    momentum: float = 0.9,
) -> Calibration:
    r"""Measures what the products of a program are given.

    The program runs once on each batch, compiled once for each shape; statistics are
    further outputs of it, merged over the batches on the host. Every observer works on
    what this one pass finds.

    $$ a_n = \mu\, a_{n-1} + (1 - \mu) \max x_n $$

    Args:
        program: any that has arrays.
        batches: inputs as the program takes them: an array each, or a tuple of several.
        hessians: whether to sum up x x^T over tokens, for GPTQ: rows times rows numbers
            for each matrix.
        momentum: $\mu$ of the moving average; the first batch starts it.

    Raises:
        CalibrationError: if there is no batch, or activations are infinite or nan.
        InputMismatchError: if a batch is not what the program takes.
        VariablesMismatchError: if the program was traced on shapes alone.

    >>> import compiler as mc, numpy as np
    >>> program = mc.trace(lambda w, x: x @ w, np.eye(2), np.ones((1, 2)))
    >>> batches = [np.array([[0.5, -2.0]], np.float32), np.ones((3, 2), np.float32)]
    >>> print(calibrate(program, batches))
    product    kind  loops  values  min  max  99.9%  features
    variables  dot   -      8       -2   1    1.993  2
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected 0 <= momentum < 1, got {momentum}.")
    if any(map(is_abstract, program.values)):
        raise VariablesMismatchError(
            "calibrate: expected a program with arrays to run on, got one that was "
            "traced on shapes alone. Give it some with program.with_variables(...)."
        )
    names = (*PLAIN, "hessian") if hessians else PLAIN
    runs: dict[int, tuple[Any, list[Watched]]] = {}
    total: dict[str, Totals] = {}
    number = 0
    for number, batch in enumerate(iterated(program.graph, batches), start=1):
        graph, flat = placed(program, batch)
        if id(graph) not in runs:
            runs[id(graph)] = _compiled(graph, names), watched(graph)[1]
        run, products = runs[id(graph)]
        measured = jax.device_get(run(program.values, flat))
        for one in products:
            new = Totals.of(measured[one.key])
            _check_finite(one, measured[one.key], number)
            old = total.get(one.key)
            total[one.key] = new if old is None else old.plus(new, momentum)
    if not number:
        raise CalibrationError(
            "calibrate: expected at least one batch, got none. Pass a list of inputs; "
            "an iterator that was gone through before has none left."
        )
    known = {one.key: one for _, products in runs.values() for one in products}
    leaves = program.graph.leaves
    return Calibration(
        {
            key: total[key].site(one, leaves[one.site.leaf].spec.shape)
            for key, one in known.items()
        },
        number,
    )


def kept(batches: Any) -> Any:
    """Batches that can be gone through again."""
    given = batches is None or isinstance(batches, Calibration)
    return batches if given or hasattr(batches, "__getitem__") else tuple(batches)


def _compiled(graph: Graph, names: Sequence[str]) -> Any:
    observed = observe(graph, names)
    return jax.jit(lambda values, flat: observed(values, flat)[1])


def iterated(graph: Graph, batches: Any) -> Iterable[Any]:
    """The batches, if it is not one of them that was given."""
    ranks = [len(spec.shape) for spec in graph.inputs]
    array = hasattr(batches, "shape")
    if isinstance(batches, dict) or (array and ranks == [len(batches.shape)]):
        raise CalibrationError(
            f"calibrate: expected an iterable of batches, got {describe(batches)}. "
            "Pass a list of batches, if only of this one."
        )
    return batches


def placed(program: Program, batch: Any) -> tuple[Graph, list[Any]]:
    """The graph for a batch of these shapes, and its arrays."""
    graph = program.graph
    inputs = (batch,)
    several = isinstance(batch, tuple | list)
    if several and jax.tree.structure(inputs) != graph.in_tree:
        inputs = tuple(batch)
    flat, in_tree = jax.tree.flatten(as_arrays(graph, inputs))
    return program.specialise(accepted(graph, flat, in_tree)), flat


def _check_finite(one: Watched, measured: Measurements, batch: int) -> None:
    bad = infinite(measured["histogram"])
    if bad:
        raise CalibrationError(
            f"{one.key} ({one.site.source}): expected finite activations, got {bad} "
            f"infinite or nan of {measured['count'].sum()}, in batch {batch} (counted "
            "from 1). Mend the batch, or what computes them before."
        )
