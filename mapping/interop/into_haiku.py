"""Mappings as haiku transforms."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

import haiku as hk
import jax

from mapping.core import Context, Mapping, Variables
from mapping.interop.from_haiku import flat, nested

_ROOT = "~"
"""What haiku calls the module of params that are in none."""


def to_haiku(mapping: Mapping) -> hk.TransformedWithState:
    """Makes of a mapping what `hk.transform_with_state` makes of a function.

    The param `encoder/dense/kernel` is `{"encoder/dense": {"kernel": ...}}`; params of
    the mapping itself are in haiku's module `~`. The functions are

        params, state = init(rng, *inputs)
        outputs, state = apply(params, state, rng, *inputs, is_training=False)

    Inside another transform, use it by `hk.lift_with_state`.

    Args:
        mapping: any mapping.

    >>> from mapping.layers import Dense
    >>> x = jax.numpy.ones((1, 3))
    >>> net = to_haiku(Dense(8) >> jax.nn.relu >> Dense(2))
    >>> params, state = net.init(jax.random.key(0), x)
    >>> params["dense_2"]["kernel"].shape
    (8, 2)
    >>> net.apply(params, state, None, x)[0].shape
    (1, 2)
    """

    def init(
        rng: jax.Array, *inputs: Any, is_training: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        made = mapping.init(rng, *inputs)
        return _to_modules(made.params), _to_modules(made.state)

    def apply(
        params: Dict[str, Any] | None,
        state: Dict[str, Any] | None,
        rng: jax.Array | None,
        *inputs: Any,
        is_training: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        variables = Variables(_from_modules(params), _from_modules(state))
        ctx = Context(rng, is_training)
        outputs, changed = mapping.apply(variables, *inputs, ctx=ctx)
        return outputs, _to_modules(changed)

    return hk.TransformedWithState(init, apply)


def _to_modules(tree: Dict[str, Any]) -> dict[str, Any]:
    modules = flat(tree)
    return {name or _ROOT: own for name, own in modules.items()}


def _from_modules(tree: Dict[str, Any] | None) -> dict[str, Any]:
    branches = nested(dict(tree or {}))
    return {**branches.pop(_ROOT, {}), **branches}
