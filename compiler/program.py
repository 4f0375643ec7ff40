"""A program: a graph together with its variables. Still a pure function."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from compiler.agreement import Difference, check, difference
from compiler.errors import CompilerError, InputMismatchError, VariablesMismatchError
from compiler.extents import Extent, accepted, as_arrays, extents, replace_extents
from compiler.graph import Graph, is_abstract, nbytes
from compiler.passes.base import Pass, fingerprint, verify
from compiler.rewrite import Events
from compiler.together import Member, only
from mapping.core import Context, Mapping, State, Variables, describe


class Traceable(Protocol):
    """What a program can be made from again, for inputs of other shapes."""

    def graph(self, in_tree: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> Graph:
        """The original graph for inputs of these shapes."""
        ...


@dataclasses.dataclass(frozen=True)
class Applied:
    """One pass that was applied to a program, and what it did.

    Attributes:
        step: the pass, with its choices made.
        events: what fired, and what was skipped and why.
        prepared: tells how each leaf was computed from those before.
        difference: how far it moved the outputs, where a sample was given.
    """

    step: Pass
    events: Events
    prepared: tuple[str, ...]
    difference: Difference | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Program(Mapping, by_identity=True):
    """A graph and the arrays it is parametrised by. Made by `trace` or `load`.

    Calling it runs it, compiled. `function` is the same as a pure function of
    (variables, inputs), so `jax.jit`, `jax.grad`, `jax.vmap` apply; as a `Mapping`
    it can be trained and composed. Called on inputs of other shapes it is traced
    again from what it came from, and its recipe applied again.

    Attributes:
        graph: the equations, for the sample's shapes.
        values: the arrays, in the order of the graph's leaves.
        source: what it was traced from.
        history: the passes applied so far, with what each did.
        stateful: whether it returns (outputs, new state), as a mapping that was
            traced in training does.

    >>> import jax.numpy as jnp, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(3), jnp.ones((2, 3)))
    >>> smaller = program >> mc.fold()
    >>> jax.grad(lambda w: smaller.function(w, jnp.ones((1, 3))).sum())(
    ...     smaller.variables).shape
    (3, 3)
    """

    graph: Graph
    values: tuple[Any, ...]
    source: Traceable
    history: tuple[Applied, ...] = ()
    stateful: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "_graphs", {_shapes(self.graph.inputs): self.graph})

    @functools.cached_property
    def variables(self) -> Any:
        """The arrays as a tree: `Variables`, or a nested dict keyed by path."""
        return self.graph.pack(self.values)

    @property
    def recipe(self) -> tuple[Pass, ...]:
        """The passes applied so far."""
        return tuple(applied.step for applied in self.history)

    @property
    def size(self) -> int:
        """How many numbers the leaves hold."""
        return sum(int(np.prod(leaf.spec.shape)) for leaf in self.graph.leaves)

    @property
    def bytes(self) -> int:
        """How many bytes the leaves take in memory."""
        return sum(nbytes(leaf.spec) for leaf in self.graph.leaves)

    def __call__(self, *inputs: Any) -> Any:  # ty: ignore[incompatible-method-override]
        """Runs the program on its own variables, compiled."""
        if any(map(is_abstract, self.values)):
            raise VariablesMismatchError(
                "this program was traced on shapes alone and has no arrays to run "
                "on. Trace it with arrays, or call program.function(variables, ...)."
            )
        return self._compiled(self.variables, *as_arrays(self.graph, inputs))

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        return jax.jit(self.function)

    def function(self, variables: Any, *inputs: Any) -> Any:
        """The program as a pure function of variables and inputs.

        Raises:
            InputMismatchError: if the inputs are of another structure, dtype or
                rank, or of a shape the original function does not take.
            VariablesMismatchError: if the variables are not like the program's.
        """
        flat, in_tree = jax.tree.flatten(as_arrays(self.graph, inputs))
        specs = accepted(self.graph, flat, in_tree)
        graph = self.specialise(specs)
        leaves = graph.unpack(variables)
        return jax.tree.unflatten(graph.out_tree, graph.evaluate(leaves, flat))

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Returns the program's own variables: it is already initialised."""
        own = self.variables
        return own if isinstance(own, Variables) else Variables(own)

    def apply(
        self, variables: Any, *inputs: Any, ctx: Context | None = None
    ) -> tuple[Any, State]:
        """Computes `(outputs, state)` as every mapping does.

        The state stays as it is, unless the program is `stateful`.
        """
        if not isinstance(variables, Variables):
            return self.function(variables, *inputs), {}
        own = variables if self.graph.packing.bundled else variables.params
        result = self.function(own, *inputs)
        return result if self.stateful else (result, variables.state)

    def member(self, name: str) -> Program:
        """One of several functions that were traced together; see `trace`.

        It has all leaves of the whole, so that one tree of variables serves every
        member.

        Raises:
            TraceError: if there is no function of this name.

        >>> import jax.numpy as jnp, compiler as mc
        >>> both = mc.trace(
        ...     {"encode": lambda w, x: x @ w, "decode": lambda w, z: z @ w.T},
        ...     jnp.ones((3, 2)),
        ...     {"encode": jnp.ones((1, 3)), "decode": jnp.ones((1, 2))},
        ... )
        >>> both.member("encode")(jnp.ones((5, 3))).shape
        (5, 2)
        """
        return Program(only(self.graph, name), self.values, Member(self, name))

    def specialise(self, specs: Sequence[jax.ShapeDtypeStruct]) -> Graph:
        """The graph for inputs of these shapes, rewritten by the same recipe.

        Raises:
            InputMismatchError: if the original function does not take them.
        """
        known: dict[Any, Graph] = self.__dict__["_graphs"]
        key = _shapes(specs)
        if key not in known:
            try:
                known[key] = self._again(specs)
            except CompilerError as error:
                raise InputMismatchError(
                    f"inputs: traced on {describe(self.graph.inputs)}, got "
                    f"{describe(list(specs))}, which it does not take: {error}"
                ) from error
        return known[key]

    def _again(self, specs: Sequence[jax.ShapeDtypeStruct]) -> Graph:
        """Traces anew and applies the recipe; the leaves must mean the same."""
        graph = self.source.graph(self.graph.in_tree, list(specs))
        # What is carried was told on the sample; other shapes may look alike by chance.
        graph = dataclasses.replace(graph, carried=self.graph.carried)
        same = True
        for applied in self.history:
            rewrite = applied.step.rewrite(graph)
            same = same and fingerprint(graph, rewrite) == applied.prepared
            graph = rewrite.graph
        if not same or graph.leaves != self.graph.leaves:
            raise VariablesMismatchError(
                "for this shape its leaves would be computed from the weights in "
                "another way. Trace and rewrite it on inputs of this shape."
            )
        return graph

    @functools.cached_property
    def variants(self) -> dict[Extent, Graph]:
        """The program for inputs with one extent larger, for each that it allows.

        What a pass decides should hold for all of them.
        """
        found: dict[Extent, Graph] = {}
        for extent in extents(self.graph.inputs):
            parts = [Extent(extent.size, (axis,)) for axis in extent.axes]
            for group in ([extent], parts if len(parts) > 1 else []):
                grown = {one: self._larger(one) for one in group}
                found |= {one: g for one, g in grown.items() if g is not None}
                if extent in found:
                    break
        return found

    @functools.cached_property
    def grown(self) -> list[Graph]:
        """The program for other inputs, together with every extent changed that may.

        One graph if all extents may change at once (by different amounts, so that
        no difference of two stays what it was), else one for each.
        """
        new = {e: e.size + i for i, e in enumerate(extents(self.graph.inputs), 1)}
        with contextlib.suppress(InputMismatchError):
            return [self.specialise(replace_extents(self.graph.inputs, new))]
        return list(self.variants.values())

    def _larger(self, extent: Extent) -> Graph | None:
        """The graph for one extent larger by one, or doubled, if it is allowed."""
        for size in (extent.size + 1, 2 * extent.size):
            with contextlib.suppress(InputMismatchError):
                inputs = replace_extents(self.graph.inputs, {extent: size})
                return self.specialise(inputs)
        return None

    def rewritten(
        self,
        step: Pass,
        *,
        sample: Sequence[Any] | None = None,
        tolerance: float | None = None,
    ) -> Program:
        """Applies one pass: decides, rewrites, verifies, prepares the leaves.

        Raises:
            VerifyError: if the pass broke the graph or changed its signature, or
                moved the outputs on the sample farther than allowed.
        """
        if tolerance is not None and sample is None:
            raise TypeError(
                "tolerance: expected a sample to measure it on. Add sample=."
            )
        step = step.decide(self)
        while True:
            rewrite = step.rewrite(self.graph)
            verify(self.graph, rewrite, type(step).__name__)
            values = self.values
            if rewrite.prepare is not None:
                values = _prepared(rewrite.prepare, self.values)
            reviewed = step.review(self, rewrite, values)
            if reviewed is step:
                break
            step = reviewed
        applied = Applied(step, rewrite.events, fingerprint(self.graph, rewrite))
        new = self._with(rewrite.graph, values, applied)
        if sample is None:
            return new
        found = difference(self, new, *sample)
        check(type(step).__name__, found, tolerance)
        compared = dataclasses.replace(applied, difference=found)
        return self._with(rewrite.graph, values, compared)

    def _with(self, graph: Graph, values: Sequence[Any], applied: Applied) -> Program:
        return dataclasses.replace(
            self, graph=graph, values=tuple(values), history=(*self.history, applied)
        )

    def with_variables(self, variables: Any) -> Program:
        """The same program with other arrays: trained further, or loaded."""
        return dataclasses.replace(self, values=tuple(self.graph.unpack(variables)))

    def __rshift__(self, other: Any) -> Any:
        """`program >> pass` applies the pass; `program >> mapping` composes."""
        if isinstance(other, Pass):
            return other(self)
        if getattr(other, "__module__", "").startswith("compiler.passes"):
            name = getattr(other, "__name__", "")
            made = f"what makes one. Call it: program >> {name}()."
            raise TypeError(
                f"program >> {name or type(other).__name__}: expected a pass, got "
                f"{made if name else 'a value of one. Give it to the pass.'}"
            )
        return super().__rshift__(other)

    def save(self, path: str | Path) -> Path:
        """Writes the program to a folder; see `compiler.artifact.save`."""
        from compiler.artifact import save

        return save(self, path)

    def __repr__(self) -> str:
        """What it takes and gives, how large it is, and its recipe."""
        steps = "".join(f" >> {step}" for step in self.recipe)
        return (
            f"Program({describe(self.graph.inputs)} -> {describe(self.graph.outputs)}, "
            f"{self.size} parameters in {self.bytes} bytes){steps}"
        )


def _prepared(
    prepare: Callable[..., list[Any]], values: Sequence[Any]
) -> tuple[Any, ...]:
    """Runs a pass's preparation, abstractly for a program without arrays."""
    if any(map(is_abstract, values)):
        return tuple(jax.eval_shape(prepare, list(values)))
    return tuple(jax.jit(prepare)(list(values)))


def _shapes(specs: Sequence[jax.ShapeDtypeStruct]) -> tuple[Any, ...]:
    return tuple(tuple(spec.shape) for spec in specs)
