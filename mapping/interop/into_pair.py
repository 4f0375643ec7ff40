"""Mappings as two functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mapping.core import Context, Mapping, Params, State, Variables


class InitApply(NamedTuple):
    """Two pure functions.

    Attributes:
        init: `init(key, *inputs) -> (params, state)`.
        apply: `apply(params, state, *inputs, key=None, train=False) -> (y, state)`.
    """

    init: Callable[..., tuple[Params, State]]
    apply: Callable[..., tuple[Any, State]]


def to_pair(mapping: Mapping) -> InitApply:
    """Makes two functions of a mapping, as stax, haiku and optax have them.

    Args:
        mapping: any mapping.

    >>> from mapping.layers import Dense
    >>> init, apply = to_pair(Dense(2))
    >>> x = jax.numpy.ones((1, 3))
    >>> params, state = init(jax.random.key(0), x)
    >>> y, state = apply(params, state, x)
    >>> y.shape
    (1, 2)
    """

    def init(key: jax.Array, *inputs: Any) -> tuple[Params, State]:
        made = mapping.init(key, *inputs)
        return made.params, made.state

    def apply(
        params: Params,
        state: State,
        *inputs: Any,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Any, State]:
        return mapping.apply(Variables(params, state), *inputs, ctx=Context(key, train))

    return InitApply(init, apply)
