"""Seeing inside: intermediate activations as outputs."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import jax

from mapping.captured import captured_by_path, join_captured, split_captured
from mapping.combinators.wrapper import Wrapper
from mapping.core import Context, Mapping, State, Variables, require_variables
from mapping.errors import FieldError, UnknownPathError
from mapping.nesting import check_result
from mapping.paths import nearest
from mapping.registry import Example, register, spec


def _examples() -> Example:
    from mapping.layers import Dense

    return Example(Capture(Dense(4) >> jax.nn.tanh, "tanh"), (spec(2, 4),))


@register("combinator", "capture", examples=_examples)
@dataclasses.dataclass(frozen=True, init=False)
class Capture(Wrapper):
    r"""Returns intermediate outputs beside the result.

    $$ x \mapsto (f(x), \{p: f_p(x)\}) $$

    for every path p inside the mapping that one of the globs names. Nothing is
    mutated: what is captured leaves by the way of the state, so it comes out of
    loops and batches too, stacked along a first axis (of `Repeat`, one entry for
    each copy). Variables are the mapping's own. A mapping called twice under one
    name gives its last output.

    Attributes:
        inner: the mapping.
        globs: paths inside it; `*` also crosses `/`.

    Raises:
        FieldError: if there is no glob.
        UnknownPathError: if a glob names nothing that is called; it lists the nearest.

    >>> from mapping.layers import Dense
    >>> net = Dense(8) >> jax.nn.relu >> Dense(2)
    >>> seen = Capture(net, "relu")
    >>> x = jax.numpy.ones((3, 4))
    >>> params = net.init(jax.random.key(0), x).params
    >>> y, inside = seen(params, x)
    >>> y.shape, inside["relu"].shape
    ((3, 2), (3, 8))
    """

    globs: tuple[str, ...]

    def __init__(self, inner: Mapping | Callable[..., Any], *globs: str) -> None:
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "globs", tuple(globs))
        if not globs or not all(isinstance(glob, str) for glob in globs):
            raise FieldError(
                f"Capture.globs: expected path globs, got {globs}. Name what is to be "
                'seen, such as "encoder/*/attention"; "*" is everything.'
            )
        self.__post_init__()

    @classmethod
    def from_fields(cls, *, inner: Mapping, globs: tuple[str, ...] = ()) -> Capture:
        """Builds it from its fields."""
        return cls(inner, *globs)

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the mapping."""
        return self.mapping.init(key, *specs)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies the mapping; returns its outputs and what was seen, by path."""
        require_variables(variables, ctx)
        outputs, state, seen = self._run(self.globs, variables, inputs, ctx)
        for glob in self.globs:
            if not any(fnmatch.fnmatchcase(path, glob) for path in seen):
                raise UnknownPathError(self._unseen(glob, variables, inputs, ctx))
        return (outputs, seen), state

    def _run(
        self, globs: tuple[str, ...], variables: Variables, inputs: Any, ctx: Context
    ) -> tuple[Any, State, dict[str, Any]]:
        prefix = "".join(f"{_literal(name)}/" for name in ctx.path)
        wanted = (*ctx.capture, *(f"{prefix}{glob}" for glob in globs))
        inner = dataclasses.replace(ctx, capture=wanted)
        result = self.mapping.apply(variables, *inputs, ctx=inner)
        outputs, state = check_result(self.mapping, result, ctx)
        state, found = split_captured(state)
        seen = {
            path: value
            for path, value in captured_by_path(found).items()
            if any(fnmatch.fnmatchcase(path, glob) for glob in globs)
        }
        return outputs, join_captured(state, found) if ctx.capture else state, seen

    def _unseen(
        self, glob: str, variables: Variables, inputs: Any, ctx: Context
    ) -> str:
        everything = jax.eval_shape(
            lambda *given: self._run(("*",), *given, ctx)[2], variables, inputs
        )
        return (
            f"{ctx.where} (Capture): {glob} names nothing that is called. Nearest: "
            f"{nearest(glob, everything)}."
        )


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
