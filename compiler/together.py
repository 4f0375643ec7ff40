"""Several functions of the same variables as one program, and one of them again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jax

from compiler import jaxprs
from compiler.errors import TraceError
from compiler.graph import Graph, needed

if TYPE_CHECKING:
    from compiler.program import Program

_MARK = "mapping.member-"
"""Begins the scope that tells, in any rewritten graph, whose an equation was. Paths
leave it out (`compiler.paths`)."""

_MARKED = re.compile(rf"{re.escape(_MARK)}([^/()]*)")


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """Functions by name as one function of their inputs by name.

    Attributes:
        functions: each a pure `f(variables, *inputs)`.
    """

    functions: dict[str, Callable[..., Any]]

    def inputs(self, given: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
        """The tuple of inputs of each function.

        Raises:
            TraceError: if what is given is not one dict with an entry for each.
        """
        found = given[0] if len(given) == 1 and isinstance(given[0], dict) else {}
        if set(found) != set(self.functions) or not found:
            raise TraceError(
                f"inputs: expected one dict with those of each of "
                f"{sorted(self.functions)}, got {sorted(map(str, found)) or 'none'}. "
                "Write trace({'encode': f}, variables, {'encode': (x,)})."
            )
        return {k: v if isinstance(v, tuple) else (v,) for k, v in found.items()}

    def __call__(self, variables: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """What each of the functions returns."""
        results = {}
        for name, run in self.functions.items():
            with jax.named_scope(_MARK + _quoted(name)):
                results[name] = run(variables, *inputs[name])
        return results


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One function of a program that holds several, as what it was traced from.

    Attributes:
        program: the whole.
        name: which of its functions.
    """

    program: Program
    name: str

    def graph(self, in_tree: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> Graph:
        """The function's graph for inputs of these shapes, the others as traced."""
        whole = self.program.graph
        places = _places(whole.in_tree, self.name)[0]
        specs = list(whole.inputs)
        for place, spec in zip(places, inputs, strict=True):
            specs[place] = spec
        return only(self.program.specialise(specs), self.name)


def only(graph: Graph, name: str) -> Graph:
    """The graph of one of several functions: its inputs and outputs, every leaf.

    Raises:
        TraceError: if there is no function of that name, or it needs the inputs of
            the others.
    """
    places, in_tree = _places(graph.in_tree, name)
    results, out_tree = _places(graph.out_tree, name)
    jaxpr, count = graph.jaxpr.jaxpr, len(graph.leaves)
    inputs = [*jaxpr.invars[:count], *(jaxpr.invars[count + i] for i in places)]
    outputs = [jaxpr.outvars[i] for i in results]
    foreign = set(jaxpr.invars) - set(inputs)
    kept = _own(graph.jaxpr, outputs, foreign, name)
    read = (*outputs, *(v for e in kept for v in e.invars))
    if not foreign.isdisjoint(jaxprs.reads(read)):
        raise TraceError(
            f"{name}: expected outputs of its own inputs, they are computed from those "
            "of the others too, as in a program that was saved whole. Save members "
            f"apart: program.member({name!r}).save(path)."
        )
    new = jaxprs.part(graph.jaxpr, inputs, outputs, kept)
    return dataclasses.replace(graph, jaxpr=new, in_tree=in_tree, out_tree=out_tree)


def _own(
    jaxpr: jaxprs.Jaxpr, outputs: Sequence[Any], foreign: set[Any], name: str
) -> list[jaxprs.Equation]:
    """The equations of one function: what its outputs need, and its effects."""
    wanted = set(map(id, needed(jaxpr, outputs, set(), effects=False)))
    depends, effects = set(foreign), []
    for equation in jaxprs.equations(jaxpr):
        if not depends.isdisjoint(jaxprs.reads(equation.invars)):
            depends.update(equation.outvars)
        elif equation.effects and _owner(equation) in (None, _quoted(name)):
            effects.append(equation)
    for equation in effects:
        before = needed(jaxpr, jaxprs.reads(equation.invars), set(), effects=False)
        wanted.update(map(id, (*before, equation)))
    return [e for e in jaxprs.equations(jaxpr) if id(e) in wanted]


def _owner(equation: jaxprs.Equation) -> str | None:
    """Whose an equation was, None if nothing tells."""
    found = _MARKED.search(jaxprs.scope(equation))  # a function may hold others itself
    return found and found[1]


def _quoted(name: str) -> str:
    """A name as a part of a scope, where / and brackets have a meaning."""
    return quote(str(name), safe="")


def _places(tree: Any, name: str) -> tuple[list[int], Any]:
    """Where the values of one function stand among the flat ones, and their tree."""
    numbered = jax.tree.unflatten(tree, range(tree.num_leaves))
    by_name = numbered[0] if isinstance(numbered, tuple) else numbered
    if not isinstance(by_name, dict) or name not in by_name:
        names = sorted(by_name) if isinstance(by_name, dict) else []
        raise TraceError(
            f"{name}: expected a function the program was traced with, it has "
            f"{names or 'one only'}. Trace several with a dict of functions."
        )
    places, own = jax.tree.flatten(by_name[name])
    return places, own
