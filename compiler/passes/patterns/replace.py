"""The pass that replaces a pattern wherever it stands."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler.errors import PatternError, PatternNotFoundError
from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.patterns.emit import Emit
from compiler.passes.patterns.pattern import Pattern, name_of
from compiler.passes.patterns.place import Match
from compiler.passes.patterns.replacement import Replacement
from compiler.passes.patterns.search import Search
from compiler.passes.patterns.view import view_of_graph
from compiler.rewrite import Event, Events
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@register("pass", "replace")
@dataclasses.dataclass(frozen=True, repr=False)
class Replace(Pass):
    """Replaces a pattern by something else; made by [`replace`][].

    Attributes:
        pattern: what is looked for, a function of arrays.
        replacement: what stands in its place, a function of the same arguments.
        samples: what the pattern is traced on first: for each argument a shape and
            dtype such as `"float32[2,8]"`, a number, or a tree of them.
        when: a guard; a place is left alone where it returns False.
        path: a glob or several; places inside none of them are not looked at.
        required: whether it is an error if nothing is replaced.
        shared: whether to replace where inner values are used elsewhere too.

    >>> Replace(jax.nn.silu, jax.nn.relu, ("float32[2,8]",))
    Replace(silu -> relu, 'float32[2,8]')
    """

    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    samples: tuple[Any, ...]
    when: Callable[[Match], Any] | None = None
    path: str | tuple[str, ...] = "*"
    required: bool = True
    shared: bool = False

    @functools.cached_property
    def _pattern(self) -> Pattern:
        return Pattern(self.pattern, jax.tree.map(_spec, self.samples))

    @property
    def _names(self) -> str:
        return f"{name_of(self.pattern)} -> {name_of(self.replacement)}"

    def rewrite(self, graph: Graph) -> Rewrite:
        """Finds every place and puts the replacement there."""
        events = Events()
        paths = (self.path,) if isinstance(self.path, str) else self.path
        search = Search(self._pattern, paths, self.when, self.shared, events)
        plan = search.plan(view_of_graph(graph))
        if plan.empty:
            if not events.skipped:
                events.skipped.append(_closest(search))
            return Rewrite(graph, None, events)
        jaxpr = Emit(Replacement(self.replacement, self._pattern), events).jaxpr(plan)
        return Rewrite(dataclasses.replace(graph, jaxpr=jaxpr), None, events)

    def review(self, program: Program, rewrite: Rewrite, values: Sequence[Any]) -> Pass:
        """Raises if a required pattern was found nowhere.

        Raises:
            PatternNotFoundError: with the place that came closest.
        """
        if self.required and not rewrite.events.fired:
            told = "; ".join(map(str, rewrite.events.skipped[:3]))
            raise PatternNotFoundError(
                f"{self._names}: nothing was replaced. {told}. Look at how the program "
                "computes it with print(program.graph), or pass required=False."
            )
        return self

    def __repr__(self) -> str:
        """The two functions' names, and what is not as by default."""
        said = [self._names, *map(repr, self.samples)]
        for field in dataclasses.fields(self)[3:]:
            value = getattr(self, field.name)
            if value != field.default:
                told = name_of(value) if callable(value) else repr(value)
                said.append(f"{field.name}={told}")
        return f"Replace({', '.join(said)})"


def replace(
    pattern: Callable[..., Any],
    replacement: Callable[..., Any],
    *samples: Any,
    when: Callable[[Match], Any] | None = None,
    path: str | tuple[str, ...] = "*",
    required: bool = True,
    shared: bool = False,
) -> Replace:
    """Replaces a pattern by something else, wherever it stands.

    Both sides are JAX functions of the same arguments. The pattern is traced, and
    found by what it computes: in calls, loops, branches and backward passes, at
    operands of any shape and dtype, whichever way round sums and products are
    written. The samples give it a first form only. Numbers in it must be the
    program's own; a number of the program can also stand for an argument.

    The last place comes first where two overlap. A place whose inner values are used
    elsewhere too is left alone, as the work would be done twice (`shared=True`
    replaces it all the same, and the other uses keep what they had).

    Args:
        pattern: what is looked for. It has no effects and uses all its arguments; its
            outputs share some value.
        replacement: what stands in its place. Its outputs have the shapes and dtypes
            of the pattern's, wherever that is found. It may have effects, a
            derivative of its own, or call a kernel. One with a keyword-only argument
            `match` is told the [`Match`][] it stands for.
        *samples: for each argument an array, a `jax.ShapeDtypeStruct`, a string such
            as `"float32[2,8]"`, a number, or a tree of them. Take extents that are
            not one and differ where they may.
        when: a guard on a [`Match`][], such as `lambda m: m["x"].shape[-1] % 8 == 0`.
        path: a glob or several; places inside none of them are not looked at.
        required: whether it is an error if nothing is replaced.
        shared: whether to replace where inner values are used elsewhere too.

    Raises:
        PatternError: if the pattern cannot be traced or could not be found.
        PatternNotFoundError: when applied, if it is required and stands nowhere.
        RuleError: when applied, if the replacement does not fit a place.

    >>> import compiler as mc
    >>> def silu(x):
    ...     return x * (1 / (1 + jnp.exp(-x)))
    >>> program = mc.trace(lambda w, x: silu(x @ w), jnp.eye(3), jnp.ones((2, 3)))
    >>> better = program >> replace(silu, jax.nn.silu, "float32[2,8]")
    >>> better.history[-1].events.fired[0].what
    'silu -> silu'
    """
    written = jax.tree.map(_written, samples)
    step = Replace(pattern, replacement, written, when, path, required, shared)
    step._pattern  # noqa: B018 (what is wrong with it is said now, not when applied)
    return step


_SAMPLE = re.compile(r"([^\[]+)\[([\d, ]*)\]")

_KEYS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def _written(sample: Any) -> Any:
    """A sample as it is kept: a string that tells shape and dtype, or a number."""
    if isinstance(sample, bool | int | float | complex):
        return sample
    if hasattr(sample, "shape") and hasattr(sample, "dtype"):
        return f"{sample.dtype}[{','.join(map(str, sample.shape))}]"
    _spec(sample)
    return sample


def _spec(sample: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype that a sample tells."""
    if isinstance(sample, bool | int | float | complex):
        dtype = jax.dtypes.result_type(sample)
        return jax.ShapeDtypeStruct((), dtype, weak_type=True)
    told = _SAMPLE.fullmatch(sample) if isinstance(sample, str) else None
    if told is None:
        raise PatternError(
            "samples: expected arrays, jax.ShapeDtypeStruct, numbers, or strings such "
            f"as 'float32[2,8]', got {sample!r}. Bind what is fixed with "
            "functools.partial."
        )
    shape = tuple(int(size) for size in told[2].split(",") if size.strip())
    return jax.ShapeDtypeStruct(shape, _dtype(told[1]))


def _dtype(name: str) -> Any:
    if name in _KEYS:
        return jax.eval_shape(lambda: jax.random.key(0, impl=_KEYS[name])).dtype
    try:
        return jnp.dtype(name)
    except TypeError as error:
        raise PatternError(
            f"samples: expected a dtype such as 'float32', got {name!r}."
        ) from error


def _closest(search: Search) -> Event:
    """What to say of a pattern that stands nowhere."""
    closest, pattern = search.closest, search.pattern
    count = len(pattern.skeletons[0].nodes)
    if closest.node is None:
        last = sorted({view.nodes[-1].name for view in pattern.skeletons})
        where = "" if "*" in search.paths else f" inside {', '.join(search.paths)}"
        return Event(
            pattern.name, f"there is no {' or '.join(last)}{where}, which it ends in"
        )
    what = (
        f"{pattern.name}: {closest.agreed} of {count} operations are there, but "
        f"{closest.why}"
    )
    return closest.node.event(what)
