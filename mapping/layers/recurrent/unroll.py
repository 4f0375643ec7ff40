"""A cell, run over a sequence."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mapping.captured import join_captured, split_captured
from mapping.context import initialising, numbered
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    call,
    describe,
    fold_name,
    init,
    require_key,
    require_variables,
)
from mapping.errors import FieldError, ProtocolError, ShapeMismatchError
from mapping.fields import check_count
from mapping.layers.recurrent.cells import GRUCell, LSTMCell, SimpleCell
from mapping.layers.recurrent.padding import at_end, choose, real_steps
from mapping.nesting import Spec, as_spec, gather
from mapping.registry import Example, register, spec

OUTPUTS = ("sequence", "last", "carry", "both")
"""What a recurrent layer can return."""


@register(
    "layer",
    "recurrent",
    examples=lambda: (
        Example(Recurrent(LSTMCell(3)), (spec(2, 4, 3),)),
        Example(
            Recurrent(GRUCell(3), output="both", reverse=True),
            (spec(2, 4, 3), jnp.array([3, 4])),
        ),
        Example(
            Recurrent(SimpleCell(3), output="last"),
            (spec(2, 4, 3), jnp.array([3, 4]), spec(2, 3)),
        ),
    ),
)
@dataclasses.dataclass(frozen=True)
class Recurrent(Mapping):
    r"""Runs a cell over the time axis, the last but one, as one loop.

    $$ (c_{t+1}, y_t) = \mathrm{cell}(c_t, x_t), \qquad t = 0, \dots, length - 1 $$

    Inputs, by position:

    - `x` (\*batch, time, d);
    - `lengths`, integers (\*batch,): how many steps of each sequence are real; None
      is all, more than there are means all. What x holds beyond is never looked at;
    - `carry`, that of the cell before the first step; None is `cell.carry(x_0)`.

    Outputs, by the field `output`: `"sequence"` y (\*batch, time, features), zero
    beyond a sequence's length; `"last"` the y (\*batch, features) of the last real
    step that was taken (zero for an empty sequence); `"carry"` the carry after it;
    `"both"` the sequence and the carry.

    The cell is any mapping from (carry, x) to (new carry, y) with a method `carry(x)`
    that makes the first carry for a step's input like x. Params: `cell/...`, the
    cell's. Its state, if it has any, goes from step to step; its randomness differs
    from step to step; what is captured in it has the time axis where x has it.

    Attributes:
        cell: the cell, such as `LSTMCell(64)`.
        output: what is returned.
        reverse: whether time runs backwards, from each sequence's own end; outputs
            stay in the places of their inputs.
        unroll: how many steps are written out in one turn of the loop.

    Raises:
        FieldError: if the cell is none, or `output` is unknown.
        ShapeMismatchError: if `x`, `lengths` or `carry` do not fit.
        ProtocolError: if the cell does not return a carry like the one it is given.

    >>> layer = Recurrent(LSTMCell(8), output="last")
    >>> x = jnp.ones((2, 5, 3))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer(variables.params, x, jnp.array([5, 2])).shape
    (2, 8)
    """

    cell: Mapping
    output: str = "sequence"
    reverse: bool = False
    unroll: int = 1

    def __post_init__(self) -> None:
        check_count(self.unroll, "Recurrent.unroll")
        if self.output not in OUTPUTS:
            raise FieldError(
                f"Recurrent.output: expected one of {', '.join(OUTPUTS)}, got "
                f"{self.output!r}."
            )
        if not isinstance(self.cell, Mapping) or not hasattr(self.cell, "carry"):
            raise FieldError(
                f"Recurrent.cell: expected a mapping from (carry, x) to (new carry, y) "
                f"with a method carry(x), got {self.cell!r}. Use LSTMCell(features), "
                "or define carry."
            )

    def init(
        self, key: jax.Array, x: Spec, lengths: Spec = None, carry: Spec = None
    ) -> Variables:
        """Initialises the cell for one step."""
        require_key(key)
        x, lengths, carry = as_spec((x, lengths, carry))
        self._check(x, lengths, initialising())
        step = _step_of(x)
        carry = as_spec(_before(self.cell, step)) if carry is None else carry
        own = init("cell", self.cell, fold_name(key, "cell"), carry, step)
        return gather({"cell": own})

    def apply(
        self,
        variables: Variables,
        x: Any,
        lengths: Any = None,
        carry: Any = None,
        *,
        ctx: Context,
    ) -> tuple[Any, State]:
        """Takes the steps."""
        require_variables(variables, ctx)
        self._check(x, lengths, ctx)
        carry = _before(self.cell, _step_of(x)) if carry is None else carry
        carry = self._settled(carry, variables, x, ctx)
        where = f"{ctx.where} (Recurrent)"
        if lengths is not None:
            lengths = jnp.asarray(lengths).astype(jnp.int32)
            x = jnp.where(real_steps(lengths, x), x, jnp.zeros((), x.dtype))

        def one(before: Any, given: Any) -> Any:
            (old, state), (t, x_t) = before, given
            own = Variables(variables.params, {"cell": state})
            inner = numbered(ctx, t)
            (new, y), moved = call("cell", self.cell, own, old, x_t, ctx=inner)
            if lengths is not None:
                zero = jax.tree.map(jnp.zeros_like, y)
                new, y = choose(t < lengths, (new, y), (old, zero), where)
            moved, seen = split_captured(moved)
            return (new, moved), (y, seen)

        (carry, state), (ys, seen) = jax.lax.scan(
            one,
            (carry, variables.state.get("cell", {})),
            (jnp.arange(x.shape[-2], dtype=jnp.int32), jnp.moveaxis(x, -2, 0)),
            reverse=self.reverse,
            unroll=self.unroll,
        )
        moved = {**variables.state, "cell": state} if state else variables.state
        seen = _batch_first({"cell": seen} if seen else {}, x.ndim - 2)
        outputs = self._outputs(ys, carry, lengths, x.ndim - 2)
        return outputs, join_captured(moved, seen)

    def _outputs(self, ys: Any, carry: Any, lengths: Any, rank: int) -> Any:
        if self.output == "carry":
            return carry
        if self.output == "last":
            if self.reverse or lengths is None:
                return jax.tree.map(lambda y: y[0 if self.reverse else -1], ys)
            return jax.tree.map(functools.partial(at_end, lengths), ys)
        sequence = _batch_first(ys, rank)
        return sequence if self.output == "sequence" else (sequence, carry)

    def _settled(self, carry: Any, variables: Variables, x: Any, ctx: Context) -> Any:
        """The first carry, of the dtypes that the cell returns.

        Raises:
            ProtocolError: if the cell returns another carry or state than it is given.
        """

        def once(variables: Variables, carry: Any, x: Any) -> Any:
            return call("cell", self.cell, variables, carry, x, ctx=ctx)

        outputs, state = jax.eval_shape(once, variables, carry, _step_of(x))
        where = f"{ctx.where}/cell ({self.cell.kind})"
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise ProtocolError(
                f"{where}: a cell should return ((new carry, y), state), got outputs "
                f"{describe(outputs)}. End it: `return (carry, y), variables.state`."
            )
        new, kept = outputs[0], as_spec(split_captured(state)[0])
        given = as_spec(variables.state.get("cell", {}))
        if _shapes(new) != _shapes(carry) or kept != given:
            raise ProtocolError(
                f"{where}: expected a carry and a state like those it was given, "
                f"{describe((carry, given))}, got {describe((new, kept))}. A loop "
                "cannot change them."
            )
        return jax.tree.map(lambda c, s: jnp.asarray(c).astype(s.dtype), carry, new)

    def _check(self, x: Any, lengths: Any, ctx: Context) -> None:
        """Refuses inputs that do not fit one another."""
        where = f"{ctx.where} (Recurrent)"
        if getattr(x, "ndim", 0) < 2 or (self.output == "last" and not x.shape[-2]):
            raise ShapeMismatchError(
                f"{where}: expected float[*batch, time, features], got {describe(x)}. "
                "Add the axis that is missing; the last output needs a step."
            )
        if lengths is None:
            return
        integers = hasattr(lengths, "dtype") and jnp.issubdtype(
            lengths.dtype, jnp.integer
        )
        if not integers or lengths.shape != x.shape[:-2]:
            raise ShapeMismatchError(
                f"{where}: expected lengths int{list(x.shape[:-2])} for {describe(x)}, "
                f"got {describe(lengths)}. Give one whole number per sequence; the "
                "carry comes third: (x, None, carry)."
            )


def _before(cell: Any, step: Spec) -> Any:
    """The carry before the first step, for a step like this."""
    return cell.carry(step)


def _step_of(x: Spec) -> jax.ShapeDtypeStruct:
    """The spec of one step of a sequence."""
    return jax.ShapeDtypeStruct((*x.shape[:-2], x.shape[-1]), x.dtype)


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return [jnp.shape(leaf) for leaf in leaves], structure


def _batch_first(tree: Any, rank: int) -> Any:
    """Moves the time axis behind the batch, where x has it."""
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, min(rank, y.ndim - 1)), tree)
