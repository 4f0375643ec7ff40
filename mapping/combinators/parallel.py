"""Side by side: several mappings, each with an input of its own, or all with one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.combinators.join import check_join, joined
from mapping.combinators.lift import as_mapping
from mapping.combinators.steps import Steps
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    call,
    fold_name,
    init,
    initialising,
    output_spec,
    require_variables,
)
from mapping.errors import NameCollisionError, ShapeMismatchError
from mapping.nesting import gather, under
from mapping.registry import Example, register, spec


def _parallel_example() -> Example:
    from mapping.layers import Dense

    return Example(Parallel(Dense(2), act=jax.nn.tanh), (spec(2, 3), spec(2, 4)))


@register("combinator", "parallel", examples=_parallel_example)
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Parallel(Steps):
    r"""The product: each mapping is given an input of its own.

    $$ (f \times g)(x, y) = (f(x), g(y)) $$

    It takes as many inputs as it has mappings, or one tuple of them (so that
    products compose: `Parallel(f, g) >> Parallel(h, k)`), or one dict with the
    mappings' names as keys. It returns a tuple, for a dict a dict.

    >>> double = Parallel(jax.numpy.negative, jax.numpy.exp)
    >>> y, z = double({}, jax.numpy.ones(2), jax.numpy.zeros(2))
    >>> y.tolist(), z.tolist()
    ([-1.0, -1.0], [1.0, 1.0])
    """

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises each mapping for its own input."""
        given = self._given(specs, initialising())
        return gather(
            {
                name: init(name, step, fold_name(key, name), x)
                for (name, step), x in zip(self.children, given, strict=True)
            }
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies each mapping to its own input."""
        require_variables(variables, ctx)
        given, new_state = self._given(inputs, ctx), dict(variables.state)
        outputs = []
        for (name, step), x in zip(self.children, given, strict=True):
            output, state = call(name, step, variables, x, ctx=ctx)
            outputs.append(output)
            if state:
                new_state[name] = state
        if len(inputs) == 1 and isinstance(inputs[0], dict):
            return dict(zip(self.names, outputs, strict=True)), new_state
        return tuple(outputs), new_state

    def _given(self, inputs: tuple[Any, ...], ctx: Context) -> tuple[Any, ...]:
        if len(inputs) == 1 and isinstance(inputs[0], dict):
            (named,) = inputs
            if set(named) == set(self.names):
                return tuple(named[name] for name in self.names)
            raise ShapeMismatchError(
                f"{ctx.where} (Parallel): expects the keys {sorted(self.names)}, got "
                f"{sorted(named)}. Name the inputs as the mappings are named."
            )
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = tuple(inputs[0])
        if len(inputs) != len(self.steps):
            raise ShapeMismatchError(
                f"{ctx.where} (Parallel): expects {len(self.steps)} inputs, one for "
                f"each of {', '.join(self.names)}, got {len(inputs)}. Give one to "
                "each; to give all the same, use Branch."
            )
        return inputs


def _branch_examples() -> tuple[Example, ...]:
    from mapping.layers import Dense

    two = (Dense(4), jax.nn.tanh)
    return (
        Example(Branch(*two, join="sum"), (spec(2, 4),)),
        Example(Branch(*two, join="concat"), (spec(2, 4),)),
        Example(Branch(*two, join=Parallel(Dense(2), Dense(3))), (spec(2, 4),)),
    )


@register("combinator", "branch", examples=_branch_examples)
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Branch(Steps):
    r"""Fan-out: every mapping is given the same inputs; a join makes one of them.

    $$ y = \mathrm{join}(f_1(x), \dots, f_n(x)) $$

    Attributes:
        join: `"sum"`, `"mean"`, `"product"`, `"concat"` (last axes), `"stack"` (a new
            first axis), a mapping or function of n inputs, whose variables are under
            `join`, or None for a tuple.

    Raises:
        FieldError: if the join is none of these.

    >>> wide = Branch(jax.numpy.sin, jax.numpy.cos, join="concat")
    >>> wide({}, jax.numpy.zeros((5, 2))).shape
    (5, 4)
    """

    join: str | Mapping | None = None

    def __init__(
        self,
        *steps: Mapping | Callable[..., Any],
        join: str | Mapping | Callable[..., Any] | None = None,
        **named: Any,
    ) -> None:
        by_name = join is None or isinstance(join, str)
        object.__setattr__(self, "join", join if by_name else as_mapping(join))
        super().__init__(*steps, **named)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_join(self.join, "Branch.join")
        if isinstance(self.join, Mapping) and "join" in self.names:
            raise NameCollisionError(
                "Branch: expected another name than join, under which the join's own "
                f"variables are, got {list(self.names)}. Rename the step: "
                "Branch(other=..., join=...)."
            )

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises every mapping, and the join for what they return."""
        children = {
            name: init(name, step, fold_name(key, name), *specs)
            for name, step in self.children
        }
        if isinstance(self.join, Mapping):
            outputs = []
            for name, step in self.children:
                with under(name):
                    outputs.append(output_spec(step, children[name], *specs))
            children["join"] = init("join", self.join, fold_name(key, "join"), *outputs)
        return gather(children)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies every mapping to the same inputs and joins what they return."""
        require_variables(variables, ctx)
        new_state, outputs = dict(variables.state), []
        for name, step in self.children:
            output, state = call(name, step, variables, *inputs, ctx=ctx)
            outputs.append(output)
            if state:
                new_state[name] = state
        if self.join is None:
            return tuple(outputs), new_state
        if isinstance(self.join, str):
            return joined(self.join, outputs, self.names, ctx), new_state
        result, state = call("join", self.join, variables, *outputs, ctx=ctx)
        if state:
            new_state["join"] = state
        return result, new_state
