"""Rewriting a program and teaching it again what it was, in one call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from compiler.distill.distill import distill
from compiler.distill.distillation import Distillation
from compiler.errors import DistillError
from compiler.passes.base import Pass
from compiler.passes.prune.masks.masking import Masking
from compiler.program import Program
from mapping.core import Context, Variables, fold_name

Row: TypeAlias = dict[str, float]
"""The step, the loss, and every term of it by name."""


class Recovered(NamedTuple):
    """What [`recover`][] and [`fine_tune`][] return.

    Attributes:
        program: the student, trained.
        history: a row for each step, in order.
    """

    program: Program
    history: tuple[Row, ...]


def recover(
    program: Program,
    step: Pass | Callable[[Program], Program],
    batches: Iterable[Any],
    *,
    optimizer: Any = 1e-3,
    steps: int = 100,
    **options: Any,
) -> Recovered:
    """Applies a pass and brings the result close to the program that was: at once.

    Args:
        program: the teacher, and what the student is made of.
        step: any pass, or pipeline of them: pruning, rounding, factorizing.
        batches: see [`fine_tune`][].
        optimizer: see [`fine_tune`][].
        steps: see [`fine_tune`][].
        **options: of [`fine_tune`][], and so of [`distill`][].

    Raises:
        DistillError: if there is nothing to train it on, or nothing left to train.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> x = jax.random.normal(jax.random.key(0), (32, 8))
    >>> net = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]
    >>> weights = {"a": x[:8], "b": x[8:16]}
    >>> program = mc.trace(net, weights, x)
    >>> small, history = recover(program, mc.low_rank(rank=2), [x], steps=30)
    >>> small.size < program.size, history[-1]["loss"] < history[0]["loss"]
    (True, True)
    """
    return fine_tune(
        step(program), program, batches, optimizer=optimizer, steps=steps, **options
    )


def fine_tune(
    student: Program,
    teacher: Any,
    batches: Iterable[Any],
    *,
    optimizer: Any = 1e-3,
    steps: int = 100,
    seed: int = 0,
    keep_zeros: bool | None = None,
    log: Callable[[Row], None] | None = None,
    **options: Any,
) -> Recovered:
    r"""Trains a student to do what its teacher does.

    $$ \theta_{n+1} = \theta_n + u(\nabla_\theta\, \ell(\theta_n, x_n)) $$

    with $u$ the optimizer's update and $\ell$ that of [`distill`][]. One step is
    compiled for each shape of a batch; the teacher's arrays are arguments of it.

    Args:
        student: a program; its weights are where it starts.
        teacher: a program, or a function of the inputs.
        batches: inputs, or tuples of them, with the labels last if there are any; gone
            through again until all steps are taken.
        optimizer: an optax transform, one of `mapping.optimizers`, or the rate of Adam.
        steps: >= 1.
        seed: of projections and of dropout.
        keep_zeros: whether weights that are zero stay zero; by default if a pass that
            made the student put them there (`prune.magnitude` and its like).
        log: called with each row.
        **options: of [`distill`][]: features, attention, temperature, alpha, ...

    Raises:
        DistillError: if there are no batches, fewer than steps in what can be gone
            through only once, or nothing to train.

    >>> import jax.numpy as jnp, compiler as mc
    >>> x = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    >>> teacher = mc.trace(lambda w, x: x @ w, jnp.eye(3), x)
    >>> student = teacher.with_variables(jnp.zeros((3, 3)))
    >>> _, history = fine_tune(student, teacher, [x], optimizer=0.1, steps=5)
    >>> history[-1]["loss"] < history[0]["loss"]
    True
    """
    loss = distill(teacher, student, **options)
    transform = _transform(optimizer)
    if steps < 1:
        raise DistillError(f"steps: expected a number >= 1, got {steps}.")
    given = _cycled(batches, steps)
    first = next(given)
    key = jax.random.key(seed)
    variables = loss.init(fold_name(key, "init"), *first)
    if keep_zeros is None:
        keep_zeros = any(isinstance(step, Masking) for step in student.recipe)
    masks = jax.jit(_nonzero)(variables.params) if keep_zeros else None
    update = jax.jit(_step(loss, transform, masks))
    moments, rows = jax.jit(transform.init)(variables.params), []
    for number, batch in enumerate(itertools.chain([first], given), start=1):
        variables, moments, terms = update(variables, moments, batch, key, number)
        rows.append(terms)
        if log is not None:
            log(_row(number, terms))
    history = [_row(i, terms) for i, terms in enumerate(jax.device_get(rows), start=1)]
    return Recovered(loss.program(variables), tuple(history))


def fine_tuner(
    teacher: Any, batches: Iterable[Any], **options: Any
) -> Callable[..., Program]:
    """A function of (program, step) that fine-tunes it, for an iterative schedule.

    Args:
        teacher: see [`fine_tune`][]; the same for every step.
        batches: see [`fine_tune`][].
        **options: see [`fine_tune`][].

    >>> import jax.numpy as jnp, compiler as mc
    >>> x = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    >>> teacher = mc.trace(lambda w, x: x @ w, jnp.eye(3), x)
    >>> tune = fine_tuner(teacher, [x], optimizer=0.1, steps=2)
    >>> tune(teacher.with_variables(jnp.zeros((3, 3))), 1).size
    9
    """

    def run(program: Program, step: int = 0) -> Program:
        own: dict[str, Any] = {"seed": step} | options
        return fine_tune(program, teacher, batches, **own).program

    return run


def _step(loss: Distillation, transform: Any, masks: Any) -> Callable[..., Any]:
    """One update, as a pure function."""

    def step(
        variables: Variables, moments: Any, batch: Any, key: jax.Array, number: int
    ) -> Any:
        ctx = Context(jax.random.fold_in(key, number), train=True)

        def objective(params: Any) -> Any:
            now = Variables(params, variables.state)
            terms, state = loss.terms(now, *batch, ctx=ctx)
            return sum(terms.values(), start=jnp.zeros((), jnp.float32)), (terms, state)

        gradients, (terms, state) = jax.grad(objective, has_aux=True)(variables.params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            updates, moments = transform.update(gradients, moments, variables.params)
        params = jax.tree.map(_moved, variables.params, updates)
        if masks is not None:
            params = jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks)
        return Variables(params, state), moments, terms

    return step


def _nonzero(params: Any) -> Any:
    return jax.tree.map(lambda a: a != 0, params)


def _moved(param: jax.Array, update: Any) -> jax.Array:
    """In the dtype of the weight."""
    return param + jnp.asarray(update, param.dtype)


def _row(number: int, terms: Any) -> Row:
    values = {name: float(value) for name, value in terms.items()}
    return {"step": number, "loss": sum(values.values())} | values


def _transform(optimizer: Any) -> Any:
    """The optimizer as an optax transform."""
    if isinstance(optimizer, int | float):
        import optax

        return optax.adam(optimizer)
    if hasattr(optimizer, "transform"):  # one of mapping.optimizers
        optimizer = optimizer.transform()
    if not hasattr(optimizer, "update"):
        raise DistillError(
            f"optimizer: expected an optax transform or a rate, got "
            f"{type(optimizer).__name__}. Pass optax.adam(1e-3)."
        )
    return optimizer


def _cycled(batches: Iterable[Any], steps: int) -> Iterator[Sequence[Any]]:
    """So many batches, from the first again when the last is used."""
    taken = 0
    while taken < steps:
        before = taken
        for batch in itertools.islice(batches, steps - taken):
            taken += 1
            yield batch if isinstance(batch, tuple) else (batch,)
        if taken == before:
            raise DistillError(
                f"batches: expected {steps} of them, or a list to go through again, "
                f"got {taken}. Pass a list, or fewer steps."
            )
