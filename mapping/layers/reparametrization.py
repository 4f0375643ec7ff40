"""Kernels that are computed from others each time a mapping is called."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mapping.combinators.wrapper import Wrapper
from mapping.core import (
    Context,
    Params,
    State,
    Variables,
    call,
    init,
    initialising,
    leaf_paths,
    path_string,
)
from mapping.errors import MissingVariablesError, UnknownPathError
from mapping.foreign import named_errors
from mapping.layers.guard import learned, wide
from mapping.layers.linear import Dense
from mapping.nesting import gather
from mapping.registry import Example, register, spec
from mapping.tree import matches


@dataclasses.dataclass(frozen=True)
class Around(Wrapper):
    """A mapping whose leaves of a given name are rewritten before it is called."""

    leaf: str = "kernel"

    def chosen(self, params: Params, ctx: Context) -> dict[str, jax.Array]:
        """The leaves that are rewritten, by path."""
        found = {
            path: leaf
            for path, leaf in leaf_paths(params).items()
            if matches(self.leaf, path) or matches(self.leaf, path.rpartition("/")[2])
        }
        if not found:
            raise UnknownPathError(
                f"{ctx.where} ({self.kind}): expected a param called {self.leaf!r} in "
                f"{self.mapping.kind}, got {sorted(leaf_paths(params)) or 'none'}. Say "
                "which with leaf=..., a name or a glob of paths."
            )
        return found

    def of_each(self, tree: Any, paths: Any, ctx: Context) -> dict[str, jax.Array]:
        """What belongs to each of the leaves."""
        own = leaf_paths(tree)
        if not all(path in own for path in paths):
            raise MissingVariablesError(
                f"{ctx.where} ({self.kind}): expects variables made by its init, for "
                f"{sorted(paths)}, got those for {sorted(own)}. Pass the Variables "
                "that init returned."
            )
        return own

    def run_with(
        self,
        leaves: dict[str, jax.Array],
        variables: Variables,
        inputs: tuple[Any, ...],
        ctx: Context,
    ) -> tuple[Any, State]:
        """Calls the mapping with other leaves; returns the whole new state."""
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaves.get(path_string(path), leaf),
            variables.params["inner"],
        )
        given = Variables({"inner": params}, variables.state)
        outputs, state = call("inner", self.mapping, given, *inputs, ctx=ctx)
        own = {**variables.state, "inner": state} if state else variables.state
        return outputs, own


@register(
    "layer",
    "weight_norm",
    examples=lambda: (
        Example(WeightNorm(Dense(4)), (spec(2, 3),)),
        Example(WeightNorm(Dense(2) >> Dense(3), axis=None), (spec(2, 3),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class WeightNorm(Around):
    r"""Learns the length of each kernel column apart from its direction.

    $$ W = g \frac{V}{\lVert V \rVert} $$

    The norm is over all axes but `axis`, g has one entry along it. It starts as the
    mapping itself: g is the length of what `inner` starts with.

    Params: `inner`, those of the mapping, whose kernels are V; `scale`, g for each of
    them under its path. State: `inner`, that of the mapping.

    Salimans & Kingma, "Weight normalization", 2016, https://arxiv.org/abs/1602.07868.
    Equals torch.nn.utils.parametrizations.weight_norm.

    Attributes:
        inner: any mapping with such leaves, a layer or a whole model.
        leaf: their name, or a glob of their paths.
        axis: that of the features out; None for one length of the whole leaf.

    Raises:
        UnknownPathError: if there is no such leaf; it lists those there are.

    >>> layer = WeightNorm(Dense(4))
    >>> x = jnp.ones((2, 3))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> sorted(leaf_paths(variables.params))
    ['inner/bias', 'inner/kernel', 'scale/kernel']
    """

    axis: int | None = -1

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the mapping; g is the length of its kernels."""
        inner = init("inner", self.mapping, key, *specs)
        leaves = self.chosen(inner.params, initialising())
        lengths = {p: _length(v, self.axis).astype(v.dtype) for p, v in leaves.items()}
        made = gather({"inner": inner})
        return Variables({**made.params, "scale": nested(lengths)}, made.state)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Calls the mapping with kernels of the learned lengths."""
        inner, scale = learned(variables, ctx, self.kind, "inner", "scale")
        directions = self.chosen(inner, ctx)
        lengths = self.of_each(scale, directions, ctx)
        with named_errors(ctx, self.kind, (directions, lengths)):
            kernels = {
                path: _scaled(v, wide(lengths[path]) / _length(v, self.axis), self.axis)
                for path, v in directions.items()
            }
        return self.run_with(kernels, variables, inputs, ctx)


def _length(v: jax.Array, axis: int | None) -> jax.Array:
    """The norm over all axes but one; never zero, which has no direction."""
    others = [i for i in range(v.ndim) if axis is None or i != axis % v.ndim]
    return jnp.sqrt(jnp.sum(jnp.square(wide(v)), tuple(others)) + 1e-24)


def _scaled(v: jax.Array, factor: jax.Array, axis: int | None) -> jax.Array:
    """The leaf times a factor for each index of one axis."""
    along = [1] * v.ndim
    if axis is not None:
        along[axis] = -1
    return (wide(v) * factor.reshape(along)).astype(v.dtype)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """A nested dict from paths."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
