"""A model over a whole data set: outputs, and metrics of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mapping.core import Context, Mapping, Tree, Variables, describe
from mapping.data.batches import as_arrays, batches, check_size
from mapping.errors import DataError


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: Mapping, variables: Variables, inputs: tuple[Any, ...]) -> Any:
    return model.apply(variables, *inputs, ctx=Context())[0]


def predict(
    model: Mapping, variables: Variables, *inputs: Any, batch_size: int = 256
) -> Tree:
    """Computes the outputs for all examples, in inference mode, batch by batch.

    The last batch is filled up by repeating its last example, so one compiled
    program serves every batch; what the filling gave is cut off again.

    Args:
        model: any mapping.
        variables: its variables.
        *inputs: arrays with a leading axis of examples.
        batch_size: examples computed at once.

    Returns:
        The outputs as numpy arrays, in the order of the examples.

    >>> from mapping.layers import Dense
    >>> v = Dense(2).init(jax.random.key(0), np.ones((1, 3), np.float32))
    >>> predict(Dense(2), v, np.ones((7, 3), np.float32), batch_size=4).shape
    (7, 2)
    """
    outputs = []
    check_size(batch_size)
    arrays = as_arrays(inputs)
    size = min(batch_size, len(arrays[0]))
    for batch in batches(arrays, size):
        count = len(batch[0])
        full = tuple(np.pad(x, _tail(x, size - count), "edge") for x in batch)
        result = _forward(model, variables, full)
        outputs.append(jax.tree.map(lambda y, n=count: np.asarray(y)[:n], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def evaluate(
    model: Mapping,
    variables: Variables,
    data: Sequence[Any],
    metrics: Dict[str, Mapping],
    *,
    batch_size: int = 256,
) -> dict[str, float]:
    """Computes metrics and losses of a model's outputs over a data set.

    Args:
        model: any mapping.
        variables: its variables.
        data: `(*inputs, target)`.
        metrics: by name, mappings from (prediction, target) to a scalar.
        batch_size: examples computed at once.

    >>> from mapping.layers import Dense
    >>> from mapping.metrics import Accuracy
    >>> x = np.eye(2, dtype=np.float32)
    >>> v = Variables({"kernel": x, "bias": np.zeros(2, np.float32)}, {})
    >>> evaluate(Dense(2), v, (x, np.array([0, 1])), {"accuracy": Accuracy()})
    {'accuracy': 1.0}
    """
    *inputs, target = as_arrays(data)
    if not inputs:
        raise DataError(
            f"data: expected (*inputs, target), got one array {describe(target)}. Add "
            "the target last."
        )
    prediction = predict(model, variables, *inputs, batch_size=batch_size)
    results = {}
    for name, metric in metrics.items():
        start = metric.init(jax.random.key(0))
        pair = (prediction, target)
        results[name] = float(metric.apply(start, *pair, ctx=Context())[0])
    return results


def _tail(array: np.ndarray, count: int) -> list[tuple[int, int]]:
    return [(0, count)] + [(0, 0)] * (array.ndim - 1)
