"""The loop: epochs of one compiled step."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Dict
from typing import Any

import jax
import numpy as np

from mapping.combinators import as_mapping
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    describe,
    require_variables,
)
from mapping.data.batches import as_arrays, batches, check_seed, check_size
from mapping.errors import DataError
from mapping.train.evaluate import evaluate
from mapping.train.history import History
from mapping.train.progress import progress
from mapping.train.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What training gives back.

    Attributes:
        variables: the trained model's.
        history: the logs, a row an epoch.
        state: everything that evolved, to go on from (`TrainStep`'s state).
    """

    variables: Variables
    history: History
    state: State


def fit(
    model: Mapping | Callable[..., Any],
    data: Sequence[Any],
    *,
    loss: Mapping | Callable[..., Any],
    optimizer: Any,
    epochs: int,
    batch_size: int = 32,
    validation: Sequence[Any] | None = None,
    metrics: Dict[str, Mapping] | None = None,
    variables: Variables | None = None,
    seed: int = 0,
    log: Callable[[dict[str, float]], None] | None = None,
) -> Fitted:
    """Trains a mapping on arrays.

    One step is compiled, once, with its state donated. On a terminal a progress
    bar is shown; elsewhere nothing is.

    Args:
        model: what is trained.
        data: `(*inputs, target)`, arrays with a leading axis of examples.
        loss: a mapping, or function, from (prediction, target) to a scalar.
        optimizer: of optax or `mapping.optimizers`, or a dict of these by path.
        epochs: passes over the data.
        batch_size: examples in a step; the remainder of a shuffled epoch is left out.
        validation: data of the same form, evaluated after each epoch.
        metrics: by name, what is measured on the validation data beside the loss.
        variables: where to start from; fresh ones by default.
        seed: of initialisation, order and dropout. Same seed, same machine, same run.
        log: called with each epoch's row.

    Raises:
        DataError: if the arrays do not fit together, or a number makes no run.
        FieldError: if the optimizer is none.
    """
    arrays = _paired("data", data)
    held_out = None if validation is None else _paired("validation", validation)
    measured = _measured(loss, metrics or {}, validation is not None)
    _check_numbers(epochs, batch_size, seed)
    size = min(batch_size, len(arrays[0]))
    step = TrainStep(as_mapping(model), measured["validation loss"], optimizer)
    state = _start(step, arrays, size, variables, seed)
    update = jax.jit(functools.partial(_update, step), donate_argnums=0)
    history = History()
    with progress("training", epochs) as advance:
        for epoch in range(1, epochs + 1):
            began = time.perf_counter()
            shuffled = batches(arrays, size, seed=seed, epoch=epoch)
            state, mean = _epoch(update, state, shuffled)
            row = {"epoch": epoch, "loss": mean}
            if held_out is not None:
                current = Variables(state["params"], state["state"])
                row |= evaluate(step.model, current, held_out, measured)
            row["seconds"] = time.perf_counter() - began
            history.rows.append(row)
            advance(_news(row))
            if log is not None:
                log(row)
    return Fitted(Variables(state["params"], state["state"]), history, state)


def _epoch(
    update: Callable[..., Any], state: State, shuffled: Iterable[Any]
) -> tuple[State, float]:
    """Runs the step over an epoch's batches; returns the state and the mean loss."""
    losses = []
    for batch in shuffled:
        state, logs = update(state, batch)
        losses.append(logs["loss"])
    return state, float(np.mean(jax.device_get(losses)))


def _update(step: TrainStep, state: State, batch: Any) -> tuple[State, Any]:
    logs, state = step.apply(Variables({}, state), batch, ctx=Context(train=True))
    return state, logs


def _paired(name: str, data: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """The data as arrays, inputs first and the target last."""
    arrays = as_arrays(data)
    if len(arrays) < 2:
        raise DataError(
            f"{name}: expected (*inputs, target), got one array {describe(arrays)}. "
            "Add the target last."
        )
    return arrays


def _measured(
    loss: Any, metrics: Dict[str, Any], validated: bool
) -> dict[str, Mapping]:
    """What is measured on validation data, by the name of its column."""
    if metrics and not validated:
        raise DataError(
            f"metrics: expected validation data to measure {sorted(metrics)} on, got "
            "none. Pass validation=(*inputs, target), which may be the training data."
        )
    if not isinstance(metrics, Dict):
        raise DataError(
            f"metrics: expected a dict of metrics by name, got "
            f"{type(metrics).__name__}. Name them: {{'accuracy': Accuracy()}}."
        )
    taken = {"epoch", "loss", "validation loss", "seconds"} & metrics.keys()
    if taken:
        raise DataError(
            f"metrics: expected names that no other column has, got {sorted(taken)}. "
            "Rename the metric."
        )
    return {"validation loss": as_mapping(loss)} | {
        name: as_mapping(metric) for name, metric in metrics.items()
    }


def _check_numbers(epochs: int, batch_size: int, seed: int) -> None:
    if not isinstance(epochs, int | np.integer) or epochs < 1:
        raise DataError(f"epochs: expected at least 1, got {epochs}.")
    check_size(batch_size)
    check_seed(seed)


def _start(
    step: TrainStep,
    arrays: tuple[np.ndarray, ...],
    size: int,
    variables: Variables | None,
    seed: int,
) -> State:
    """Makes the first state in one compiled call, owning every buffer it donates."""
    key = jax.random.key(seed)
    if variables is not None:
        require_variables(variables, Context(path=("fit",)))
        return jax.jit(step.start)(key, variables).state
    specs = tuple(
        jax.ShapeDtypeStruct(
            (size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
        )
        for x in arrays
    )
    return jax.jit(lambda key: step.init(key, specs))(key).state


def _news(row: dict[str, float]) -> str:
    shown = (f"{k} {v:.4g}" for k, v in row.items() if k not in ("epoch", "seconds"))
    return "  ".join(shown)
