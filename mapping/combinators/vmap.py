"""The same mapping over an axis."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mapping.captured import join_captured, split_captured
from mapping.combinators.wrapper import Wrapper
from mapping.context import numbered
from mapping.core import (
    Context,
    State,
    Variables,
    describe,
    initialising,
    require_variables,
)
from mapping.errors import ShapeMismatchError
from mapping.nesting import as_spec, check_result, check_variables
from mapping.registry import Example, register, spec

Axes = int | None | tuple[int | None, ...]


def _examples() -> Example:
    from mapping.layers import Dense

    return Example(
        Vmap(Dense(4) >> jnp.tanh, in_axes=-1, out_axes=-1), (spec(2, 3, 5),)
    )


@register("combinator", "vmap", examples=_examples)
@dataclasses.dataclass(frozen=True)
class Vmap(Wrapper):
    r"""Applies a mapping along an axis of its inputs, with one set of variables.

    $$ y_i = f_\theta(x_i) $$

    Variables are the mapping's own. Each index draws its own randomness. State that
    moves in training (running statistics) is averaged over the axis; state that
    moves in inference (a decoder's cache) is left as it was.

    Attributes:
        inner: the mapping.
        in_axes: the axis of the inputs, for all or one for each; None where an input
            is the same for every index.
        out_axes: where the axis goes in the outputs.
        axis_name: a name by which the mapping's collectives can reach the axis.

    Raises:
        ShapeMismatchError: if an input does not have the axis, or they differ in
            length.

    >>> rows = Vmap(jnp.sort, in_axes=1, out_axes=1)
    >>> rows({}, jnp.array([[3.0, 1.0], [2.0, 5.0]])).tolist()
    [[2.0, 1.0], [3.0, 5.0]]
    """

    in_axes: Axes = 0
    out_axes: int = 0
    axis_name: str | None = None

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the mapping for one index."""
        axes = self._axes(specs, initialising())
        one = [
            x if axis is None else jax.tree.map(lambda s, a=axis: _without(s, a), x)
            for x, axis in zip(as_spec(specs), axes, strict=True)
        ]
        if self.axis_name is None:
            return check_variables(self.mapping, self.mapping.init(key, *one))
        named = jax.vmap(
            lambda _: check_variables(self.mapping, self.mapping.init(key, *one)),
            axis_name=self.axis_name,
        )
        return jax.tree.map(lambda leaf: leaf[0], named(jnp.zeros(1)))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies the mapping to every index at once."""
        require_variables(variables, ctx)
        axes = self._axes(inputs, ctx)
        (size,) = _sizes(inputs, axes)

        def one(index: jax.Array, *given: Any) -> tuple[Any, State]:
            result = self.mapping.apply(variables, *given, ctx=numbered(ctx, index))
            return check_result(self.mapping, result, ctx)

        mapped = jax.vmap(one, (0, *axes), (self.out_axes, 0), axis_name=self.axis_name)
        outputs, state = mapped(jnp.arange(size), *inputs)
        state, seen = split_captured(state)
        moved = jax.tree.map(_averaged, state) if ctx.train else variables.state
        return outputs, join_captured(moved, seen)

    def _axes(self, inputs: tuple[Any, ...], ctx: Context) -> tuple[int | None, ...]:
        """The axis of each input, seen to be there."""
        axes = self.in_axes
        if not isinstance(axes, tuple):
            axes = (axes,) * len(inputs)
        fits = len(axes) == len(inputs) and all(
            axis is None or -leaf.ndim <= axis < leaf.ndim
            for x, axis in zip(inputs, axes, strict=True)
            for leaf in jax.tree.leaves(x)
        )
        if not fits or len(_sizes(inputs, axes)) != 1:
            raise ShapeMismatchError(
                f"{ctx.where} (Vmap): expects inputs with the axes {axes}, all of one "
                f"length, got {describe(inputs)}. Give in_axes an entry for each "
                "input, None where it is the same for every index."
            )
        return axes


def _sizes(inputs: tuple[Any, ...], axes: tuple[int | None, ...]) -> set[int]:
    return {
        leaf.shape[axis]
        for x, axis in zip(inputs, axes, strict=True)
        if axis is not None
        for leaf in jax.tree.leaves(x)
    }


def _without(leaf: Any, axis: int) -> jax.ShapeDtypeStruct:
    shape = list(leaf.shape)
    del shape[axis]
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)


def _averaged(leaf: jax.Array) -> jax.Array:
    """Running statistics are averaged; what is counted is the same for every index."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf[0]
    still = (leaf == leaf[:1]).all(0)  # a mean of equals is off by a rounding
    return jnp.where(still, leaf[0], leaf.mean(0))
