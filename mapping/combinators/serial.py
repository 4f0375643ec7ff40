"""One after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from mapping.combinators.lift import as_mapping
from mapping.combinators.steps import Step, Steps
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    call,
    fold_name,
    init,
    output_spec,
    require_variables,
)
from mapping.nesting import gather, under
from mapping.registry import Example, register, spec


def _examples() -> Example:
    from mapping.layers import BatchNorm, Dense, Dropout

    net = Serial(hidden=Dense(4), norm=BatchNorm(), drop=Dropout(0.5), act=jax.nn.silu)
    return Example(net, (spec(5, 3),))


@register("combinator", "serial", examples=_examples)
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Serial(Steps):
    r"""Composition: each step is given what the one before it returned.

    $$ y = (f_n \circ \dots \circ f_1)(x) $$

    Steps given by keyword carry the name you chose; steps given by position are
    named after their kind (`dense`, `dense_2`, ...). Names are the paths of
    params, state, randomness and the compiler's reports, so choose them where you
    mean to keep a checkpoint. `Serial()` is the identity.

    Attributes:
        steps: pairs of a name (None where it was not chosen) and a mapping.

    Raises:
        NameCollisionError: if two steps are given the same name.
        NotAMappingError: if a step is neither a mapping nor a function.

    >>> from mapping.layers import Dense
    >>> net = Serial(hidden=Dense(8), act=jax.nn.relu, head=Dense(2))
    >>> net.names
    ('hidden', 'act', 'head')
    >>> (Dense(8) >> jax.nn.relu >> Dense(2)).names
    ('dense', 'relu', 'dense_2')
    """

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises each step for what the steps before it produce."""
        children = {}
        for name, step in self.children:
            children[name] = own = init(name, step, fold_name(key, name), *specs)
            with under(name):
                specs = (output_spec(step, own, *specs),)
        return gather(children)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the steps in order."""
        require_variables(variables, ctx)
        new_state = dict(variables.state)
        for name, step in self.children:
            output, state = call(name, step, variables, *inputs, ctx=ctx)
            inputs = (output,)
            if state:
                new_state[name] = state
        return inputs[0] if len(inputs) == 1 else inputs, new_state


def chain(first: Any, second: Any) -> Mapping:
    """`first >> second`, flattened so that composition is associative."""
    first, second = as_mapping(first), as_mapping(second)
    if first == _IDENTITY:
        return second
    if second == _IDENTITY:
        return first
    return Serial.from_fields(steps=(*_steps(first), *_steps(second)))


_IDENTITY = Serial()


def _steps(mapping: Mapping) -> tuple[Step, ...]:
    return mapping.steps if type(mapping) is Serial else ((None, mapping),)
