"""Vocabulary pruning: rows of a table that are never looked up, and their logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from compiler.errors import PlanError
from compiler.events import Event, Events
from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.prune.depth.tokens import Tokens
from compiler.passes.prune.structure import shrink
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@register("value", "vocabulary")
@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which tokens are left of a vocabulary, and what numbers they have now.

    Attributes:
        kept: the old ids, ascending; the new id of each is its place.
        size: how many there were.
        unknown: the old id of the token that stands for those that are gone; None if
            there is none.

    >>> own = Vocabulary((0, 3, 5), 6, unknown=0)
    >>> own.encode(np.array([[3, 5], [4, 3]])).tolist()
    [[1, 2], [0, 1]]
    >>> own.decode(np.array([2, 0])).tolist()
    [5, 0]
    """

    kept: tuple[int, ...]
    size: int
    unknown: int | None = None

    def __len__(self) -> int:
        """How many tokens are left."""
        return len(self.kept)

    def encode(self, tokens: Any) -> Any:
        """Old ids as new ones; negative ids count from the end, as they did.

        Args:
            tokens: integers of any shape, `[...]`, less than `size`.

        Raises:
            ValueError: if a token is gone, and none stands for it.
        """
        old = np.asarray(tokens)
        if old.size and not (-self.size <= old.min() and old.max() < self.size):
            raise ValueError(
                f"tokens: expected ids from 0 to {self.size - 1}, got {old.min()} to "
                f"{old.max()}. Encode with the vocabulary of the original model."
            )
        table = np.full(self.size, -1 if self.unknown is None else self.unknown)
        new = np.searchsorted(self.kept, table) if self.unknown is not None else table
        new[list(self.kept)] = np.arange(len(self.kept))
        found = new[old]
        if (found < 0).any():
            gone = np.unique(old[found < 0])[:5].tolist()
            raise ValueError(
                f"tokens: expected tokens that were kept, {gone} are gone. Keep them, "
                "or say with unknown= which kept id stands for those that are gone."
            )
        return jnp.asarray(found.astype(old.dtype))

    def decode(self, outputs: Any) -> Any:
        """New ids as old ones; logits over new ids as logits over old ones.

        Args:
            outputs: integers of any shape, or floats `[..., len(self)]`.

        Returns:
            Integers of the same shape, or floats `[..., size]`, minus infinity for
            tokens that are gone.
        """
        outputs = jnp.asarray(outputs)
        kept = jnp.asarray(self.kept)
        if jnp.issubdtype(outputs.dtype, jnp.integer):
            return kept[outputs].astype(outputs.dtype)
        shape = (*outputs.shape[:-1], self.size)
        return jnp.full(shape, -jnp.inf, outputs.dtype).at[..., kept].set(outputs)


@register("pass", "prune_vocabulary")
@dataclasses.dataclass(frozen=True)
class PruneVocabulary(Pass):
    """Removes rows of a table that token ids look up, and whatever goes with them.

    With a row goes its column of the output layer, tied or not, and its logit. Inputs
    are token ids in the new numbering, and so are outputs that are ids; outputs over
    the vocabulary become shorter. For tokens that are kept

        new(encode(tokens)) == old(tokens)[..., kept]

    number for number. A function that does something over the whole vocabulary (a
    softmax, a loss, the next token) does it over what is left: other numbers, so it has
    to be allowed by `among_kept`.

    Attributes:
        kept: the ids that stay, ascending.
        size: how many ids there are now; found by `decide`.
        path: of the table; the one leaf that ids look up, if there is only one.
        among_kept: whether what is done over all tokens may be done over those kept.

    Raises:
        PlanError: if no table is looked up by ids, several are and none is named, or
            the table has to stay.
    """

    kept: tuple[int, ...]
    size: int | None = None
    path: str | None = None
    among_kept: bool = False

    def decide(self, program: Program) -> Pass:
        """Finds the table, and checks what stays of it."""
        if self.size is not None:
            return self
        found = Tokens(program.graph, self.path)
        wrong = [i for i in self.kept if not 0 <= i < found.size]
        if wrong or not self.kept:
            raise ValueError(
                f"prune.vocabulary: keep: expected ids from 0 to {found.size - 1}, got "
                f"{wrong[:5] or 'none'}."
            )
        return dataclasses.replace(self, size=found.size, path=found.path)

    def rewrite(self, graph: Graph) -> Rewrite:
        """The graph on a smaller table."""
        events = Events()
        found = Tokens(graph, self.path)
        if self.size not in (None, found.size):
            if found.size != len(self.kept):
                raise PlanError(
                    f"{found.path}: expected {self.size} rows, got {found.size}. The "
                    "pass was decided for another vocabulary."
                )
            events.skipped.append(Event(found.path, "has these rows alone already"))
            return Rewrite(graph, None, events)
        gone = sorted(set(range(found.size)) - set(self.kept))
        if not gone:
            events.skipped.append(Event(found.path, "every token is kept"))
            return Rewrite(graph, None, events)
        plan = found.plan_tokens(gone, self.among_kept)
        small = shrink(found, plan)
        for leaf in graph.leaves:
            if plan.axes(leaf.path):
                before, after = tuple(leaf.spec.shape), plan.shape(leaf.path)
                events.fired.append(Event(leaf.path, f"{before} -> {after}"))

        def prepare(leaves: Sequence[Any]) -> list[Any]:
            pairs = zip(leaves, graph.paths, strict=True)
            return [plan.cut(leaf, path) for leaf, path in pairs]

        return Rewrite(small, prepare, events, resized=found.resized)


def vocabulary(
    program: Program,
    keep: Any = None,
    *,
    corpus: Iterable[Any] | None = None,
    min_count: int = 1,
    path: str | None = None,
    unknown: int | None = None,
    among_kept: bool = False,
) -> tuple[Program, Vocabulary]:
    """Removes tokens from a program; see [`PruneVocabulary`][].

    Args:
        program: any function of token ids, traced.
        keep: the ids that stay.
        corpus: arrays of ids instead: those that occur in them stay, and `keep` too.
        min_count: how often they have to occur.
        path: of the table, if ids look up several.
        unknown: an id that stays and stands for those that are gone.
        among_kept: whether what is done over all tokens may be done over those kept.

    Returns:
        The smaller program, and what the ids are now.

    Raises:
        ValueError: if it is not said what stays, or an id is none.

    >>> import compiler as mc
    >>> def model(table, tokens):
    ...     return jnp.tanh(table[tokens]) @ table.T
    >>> table = jnp.arange(12.0).reshape(6, 2) / 10
    >>> program = mc.trace(model, table, jnp.array([1, 4]))
    >>> small, ids = vocabulary(program, keep=[1, 4, 5])
    >>> tokens = jnp.array([4, 5, 1])
    >>> want = program(tokens)[:, jnp.array(ids.kept)]
    >>> bool((small(ids.encode(tokens)) == want).all())
    True
    """
    if keep is None and corpus is None:
        raise ValueError(
            "prune.vocabulary: expected keep= or corpus=, got none. Say which ids stay."
        )
    ids = np.unique(np.asarray([] if keep is None else keep, np.int64).ravel())
    if unknown is not None:
        ids = np.union1d(ids, [unknown])
    if corpus is not None:
        ids = np.union1d(ids, _frequent(corpus, min_count))
    step = PruneVocabulary(tuple(ids.astype(int).tolist()), None, path, among_kept)
    small = program >> step
    done = small.recipe[-1]
    size = getattr(done, "size", None) or len(ids)
    return small, Vocabulary(tuple(step.kept), size, unknown)


def _frequent(corpus: Iterable[Any], least: int) -> np.ndarray:
    """The ids that occur often enough in arrays."""
    arrays = corpus if isinstance(corpus, list | tuple) else [corpus]
    flat = np.concatenate([np.asarray(array).ravel() for array in arrays])
    ids, counts = np.unique(flat, return_counts=True)
    return ids[counts >= least]
