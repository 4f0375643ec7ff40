"""The same layer many times, as one loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mapping.combinators.wrapper import Wrapper
from mapping.context import numbered
from mapping.core import (
    Context,
    State,
    Variables,
    describe,
    initialising,
    leaf_paths,
    outline,
    require_key,
    require_variables,
)
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.nesting import as_spec, check_result, check_variables
from mapping.paths import nearest
from mapping.registry import Example, register, spec


def _examples() -> tuple[Example, ...]:
    from mapping.layers import Dense

    inner = Dense(4) >> jax.nn.tanh
    return (
        Example(Repeat(inner, 3), (spec(2, 4),)),
        Example(Repeat(inner, 2, remat=True), (spec(2, 4),)),
    )


@register("combinator", "repeat", examples=_examples)
@dataclasses.dataclass(frozen=True)
class Repeat(Wrapper):
    r"""Applies n copies of a mapping, one after the other, each with its own variables.

    $$ y = f_{\theta_n}(\dots f_{\theta_1}(x)) $$

    The variables of the copies are stacked along a first axis and the copies run as
    one `jax.lax.scan`: the program is as long as one of them, however many there
    are. Paths are the mapping's own. Further inputs (a mask) go to every copy; the
    first must come out as it went in. Each copy draws its own randomness.

    Attributes:
        inner: the mapping.
        times: how many copies, at least one.
        remat: whether the backward pass computes activations again instead of
            keeping them; or the name of a policy of `jax.checkpoint_policies` that
            says which are kept, such as `"dots_saveable"`.
        unroll: how many copies are written out in one turn of the loop.

    Raises:
        FieldError: if `times` or `unroll` is no count, or the policy is unknown.
        ShapeMismatchError: if the mapping changes its first input's shape or dtype.

    >>> from mapping.layers import Dense
    >>> deep = Repeat(Dense(4) >> jax.nn.tanh, 12)
    >>> v = deep.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 4), "float32"))
    >>> v.params["dense"]["kernel"].shape
    (12, 4, 4)
    """

    times: int
    remat: bool | str = False
    unroll: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.times, "Repeat.times")
        check_count(self.unroll, "Repeat.unroll")
        known = [name for name in dir(jax.checkpoint_policies) if name[0] != "_"]
        if isinstance(self.remat, str) and self.remat not in known:
            raise FieldError(
                f"Repeat.remat: expected True, False or a policy of "
                f"jax.checkpoint_policies, got {self.remat!r}. Nearest: "
                f"{nearest(self.remat, known)}."
            )

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises every copy with a key of its own."""
        require_key(key)
        _, output = outline(self.mapping, *specs)
        self._check_kept(as_spec(specs[0]), output, initialising())

        def one(index: jax.Array) -> Variables:
            made = self.mapping.init(jax.random.fold_in(key, index), *specs)
            return check_variables(self.mapping, made)

        return jax.vmap(one)(jnp.arange(self.times))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the copies in a loop."""
        require_variables(variables, ctx)
        self._check_stacked(variables, ctx)
        first, *others = inputs

        def one(x: Any, turn: tuple[jax.Array, Variables]) -> tuple[Any, State]:
            index, own = turn
            result = self.mapping.apply(own, x, *others, ctx=numbered(ctx, index))
            y, state = check_result(self.mapping, result, ctx)
            self._check_kept(as_spec(x), as_spec(y), ctx)
            return y, state

        turns = (jnp.arange(self.times), variables)
        return jax.lax.scan(self._kept(one), first, turns, unroll=self.unroll)

    def _kept(self, one: Callable[..., Any]) -> Callable[..., Any]:
        """Says what the backward pass keeps of a turn."""
        if not self.remat:
            return one
        named = isinstance(self.remat, str)
        policy = getattr(jax.checkpoint_policies, self.remat) if named else None
        return jax.checkpoint(one, policy=policy, prevent_cse=False)

    def _check_kept(self, given: Any, returned: Any, ctx: Context) -> None:
        if given != returned:
            raise ShapeMismatchError(
                f"{ctx.where} (Repeat): the mapping expects its own output again, got "
                f"{describe(returned)} of {describe(given)}. Let it return what it is "
                "given, or put a mapping before it."
            )

    def _check_stacked(self, variables: Variables, ctx: Context) -> None:
        for path, leaf in leaf_paths(variables).items():
            if leaf.shape[:1] != (self.times,):
                raise ShapeMismatchError(
                    f"{ctx.where} (Repeat): expects variables of {self.times} copies "
                    f"along a first axis, got {path} {describe(leaf)}. Stack them "
                    "with jax.tree.map(lambda *x: jnp.stack(x), *copies)."
                )
