"""A student or a teacher, whatever it is: how it is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from compiler.distill.programs import Called, ProgramSide
from compiler.errors import DistillError, UnknownPathError
from compiler.program import Program
from mapping.core import (
    Context,
    Mapping,
    Variables,
    captured_by_path,
    split_captured,
)


@dataclasses.dataclass(frozen=True, eq=False)
class MappingSide:
    """A mapping as it was written; its paths are those of `mapping.Capture`.

    Attributes:
        mapping: the mapping.
        paths: of the values that are wanted beside its outputs.
    """

    mapping: Mapping
    paths: tuple[str, ...] = ()
    count: None = None

    def start(self, key: jax.Array, *inputs: Any) -> Variables:
        """Fresh variables."""
        return self.mapping.init(key, *inputs)

    def own(self, variables: Variables) -> Variables:
        """The variables the mapping itself takes."""
        return variables

    def __call__(
        self, variables: Variables, inputs: Sequence[Any], ctx: Context
    ) -> Called:
        """Applies it, catching what is wanted."""
        key = None if ctx.key is None else ctx.rng()
        inner = Context(key, ctx.train, (), self.paths)
        outputs, state = self.mapping.apply(variables, *inputs, ctx=inner)
        state, seen = split_captured(state)
        found = captured_by_path(seen)
        missing = [path for path in self.paths if path not in found]
        if missing:
            raise UnknownPathError(
                f"{missing[0]}: expected the path of a mapping inside the student, "
                "names none. Trace it with mc.trace to see its operations."
            )
        return Called(outputs, found, state)


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionSide:
    """A function of the inputs alone: a teacher, whatever it is made of.

    Attributes:
        function: `f(*inputs)` that returns logits.
    """

    function: Callable[..., Any]
    count: None = None

    def start(self, key: jax.Array, *inputs: Any) -> Variables:
        """No variables."""
        return Variables()

    def __call__(
        self, variables: Variables, inputs: Sequence[Any], ctx: Context
    ) -> Called:
        """Calls it."""
        return Called(self.function(*inputs), {}, {})


def side(
    thing: Any,
    paths: Sequence[str],
    output: str | None,
    train: Sequence[str] | None,
    role: str,
) -> Any:
    """A student or teacher of whatever kind.

    Raises:
        DistillError: if it is none, or values inside of it cannot be had.
    """
    if isinstance(thing, Program):
        globs = None if train is None else tuple(train)
        own = tuple(dict.fromkeys(paths))
        return ProgramSide(thing, own, output, globs, role == "teacher")
    if isinstance(thing, Mapping) and role == "student":
        return MappingSide(thing, tuple(dict.fromkeys(paths)))
    if isinstance(thing, Mapping) or not callable(thing) or role == "student":
        raise DistillError(
            f"{role}: expected a program, got {type(thing).__name__}. Trace it: "
            "mc.trace(function, variables, *inputs)."
        )
    if paths:
        raise DistillError(
            f"{role}: expected a program, inside of which there is "
            f"{', '.join(paths[:3])}, got a function. Trace it: mc.trace(function, "
            "variables, *inputs)."
        )
    return FunctionSide(thing)
