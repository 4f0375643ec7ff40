"""Weights as products of two factors of low rank, by truncated SVD."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler.errors import NonFiniteWeightsError, VariablesMismatchError
from compiler.graph import Graph, Leaf, is_abstract
from compiler.passes.base import Pass, Rewrite
from compiler.passes.factorize.matrix import Matrix, as_matrix, chosen
from compiler.passes.factorize.ranks import (
    Spectra,
    energy,
    largest,
    rank_of_energy,
    ranks_of_budget,
    size,
    spectrum,
)
from compiler.passes.factorize.rewriting import (
    LEFT,
    RIGHT,
    Report,
    prepare,
    with_factors,
)
from compiler.rewrite import Event, Events
from compiler.sites import WeightSite
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program


@register("pass", "low_rank")
@dataclasses.dataclass(frozen=True)
class LowRank(Pass):
    r"""Replaces weights by the product of two factors, of a rank that makes it smaller.

    $$ W = U \Sigma V^\top \approx (U_r \Sigma_r^{1/2}) (\Sigma_r^{1/2} V_r^\top),
       \qquad \lVert W - W_r \rVert_2 = \sigma_{r+1}, \qquad
       \lVert W - W_r \rVert_F^2 = \sum_{i > r} \sigma_i^2 $$

    the best approximation of that rank (Eckart & Young, 1936). The product is never
    multiplied out: x W becomes (x L) R, and a convolution one to r channels and then
    one of 1 x 1 (Denton et al., 2014, https://arxiv.org/abs/1404.0736), or, with
    `spatial`, one of k x 1 and then one of 1 x k (Jaderberg, Vedaldi & Zisserman,
    2014, https://arxiv.org/abs/1405.3866). Exactly one of `rank`, `energy` and
    `budget` is given. Weights stacked for a scan share one rank.

    Attributes:
        rank: of every weight.
        energy: the share of the squared singular values to keep, in (0, 1].
        budget: the share of the program's numbers to keep, in (0, 1); ranks are
            spent where they keep the largest share of a weight.
        path: globs of the leaves, or of the operations that use them.
        spatial: whether a convolution is split along its two spatial axes.
        ranks: what was decided: paths, ranks, and the energy kept (None where
            the program has no values).

    Raises:
        ValueError: if the choice of rank is none or the budget too small.
        UnknownPathError: if a glob names nothing.
        NonFiniteWeightsError: if a weight holds inf or nan.
    """

    rank: int | None = None
    energy: float | None = None
    budget: float | None = None
    path: tuple[str, ...] = ("*",)
    spatial: bool = False
    ranks: tuple[tuple[str, int, float | None], ...] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_choice(self.rank, self.energy, self.budget)
        object.__setattr__(self, "path", tuple(self.path))
        if self.ranks is not None:
            ranks = tuple((path, rank, kept) for path, rank, kept in self.ranks)
            object.__setattr__(self, "ranks", ranks)

    def decide(self, program: Program) -> Pass:
        """Chooses the ranks; looks at the weights' values where it has them."""
        graph = program.graph
        found = self._matrices(graph).values()
        matrices = [m for m in found if isinstance(m, Matrix)]
        values = dict(zip(graph.paths, program.values, strict=True))
        if any(is_abstract(values[m.path]) for m in matrices):
            if self.rank is None:
                raise VariablesMismatchError(
                    "low_rank: expected weights to choose ranks from, got a program "
                    "traced on shapes alone. Give rank=, or trace it with arrays."
                )
            ranks = [(m.path, self.rank, None) for m in matrices]
            return dataclasses.replace(self, ranks=tuple(ranks))
        spectra = {m.path: _spectrum(m, values[m.path]) for m in matrices}
        found = self._ranks(program, matrices, spectra)
        ranks = [(p, r, energy(spectra[p], r)) for p, r in found.items()]
        return dataclasses.replace(self, ranks=tuple(ranks))

    def rewrite(self, graph: Graph) -> Rewrite:
        """Replaces each weight that gets smaller by its factors."""
        events, plan = Events(), {}
        wanted = {path: (rank, kept) for path, rank, kept in self.ranks or ()}
        for path, matrix in self._matrices(graph).items():
            rank, kept = wanted.get(path, (None, None))
            why = matrix if isinstance(matrix, str) else _why_whole(matrix, rank)
            if why is not None:
                events.skipped.append(Event(path, why))
            elif isinstance(matrix, Matrix) and rank is not None:
                plan[path] = matrix, rank
                events.fired.append(Event(path, _told(matrix, rank, kept)))
        if not plan:
            return Rewrite(graph, None, events)
        names, jaxpr = with_factors(graph, plan, Report())
        new = graph.with_leaves(names, jaxpr)
        return Rewrite(new, functools.partial(prepare, graph.paths, plan), events)

    def _matrices(self, graph: Graph) -> dict[str, Matrix | str]:
        """The leaves that are chosen, as matrices, or why they stay whole."""
        found: dict[str, Matrix | str] = {}
        for leaf, sites in chosen(graph, self.path):
            parent = leaf.path.rsplit("/", 1)[0]
            if {f"{parent}/{LEFT}", f"{parent}/{RIGHT}"} <= set(graph.paths):
                found[leaf.path] = "is a factor already"
            else:
                found[leaf.path] = self._as_matrix(leaf, sites)
        trial = {p: (m, 1) for p, m in found.items() if isinstance(m, Matrix)}
        report = Report()
        with_factors(graph, trial, report)
        for path in trial:
            if where := report.multiplied(path):
                found[path] = f"is needed whole by {', '.join(where)}"
        return found

    def _as_matrix(self, leaf: Leaf, sites: Sequence[WeightSite]) -> Matrix | str:
        matrix = as_matrix(leaf, sites)
        if any(site.groups > 1 for site in sites):
            return "is the kernel of a grouped convolution"
        if self.spatial and isinstance(matrix, Matrix):
            return _spatial(matrix, sites)
        return matrix

    def _ranks(
        self, program: Program, matrices: Sequence[Matrix], spectra: Spectra
    ) -> dict[str, int]:
        if self.rank is not None:
            return {m.path: self.rank for m in matrices}
        if self.energy is not None:
            return {p: rank_of_energy(s, self.energy) for p, s in spectra.items()}
        shrinking = [m for m in matrices if largest(m) > 0]
        sizes = (m.extents[0] * m.extents[1] * m.extents[2] for m in shrinking)
        rest = program.size - sum(sizes)
        budget = int((self.budget or 0.0) * program.size) - rest
        return ranks_of_budget(shrinking, spectra, budget)


def low_rank(
    rank: int | None = None,
    *,
    energy: float | None = None,
    budget: float | None = None,
    path: str | Sequence[str] = "*",
    spatial: bool = False,
) -> LowRank:
    """Factorises weights by truncated SVD; see [`LowRank`][].

    >>> import compiler as mc
    >>> w = jnp.outer(jnp.arange(8.0), jnp.ones(8))
    >>> program = mc.trace(lambda v, x: x @ v["w"], {"w": w}, jnp.ones((1, 8)))
    >>> small = low_rank(energy=0.99)(program)
    >>> small.graph.paths, program.size, small.size
    (['w/left', 'w/right'], 64, 16)
    """
    globs = (path,) if isinstance(path, str) else tuple(path)
    return LowRank(rank, energy, budget, globs, spatial)


def _why_whole(matrix: Matrix, rank: int | None) -> str | None:
    if rank is None:
        return "stays whole: no rank would keep as much for as little"
    if rank <= largest(matrix):
        return None
    _, rows, columns = matrix.extents
    return (
        f"would not get smaller: {rows} x {columns} needs a rank of at most "
        f"{largest(matrix)}, not {rank}"
    )


def _told(matrix: Matrix, rank: int, kept: float | None) -> str:
    stack, rows, columns = matrix.extents
    text = (
        f"{rows} x {columns} -> rank {rank}, {stack * rows * columns} -> "
        f"{size(matrix, rank)} numbers"
    )
    if kept is None:
        return text
    error = max(0.0, 1.0 - kept) ** 0.5
    return f"{text}, {kept:.2%} of the energy kept (relative error {error:.2g})"


def _spatial(matrix: Matrix, sites: Sequence[WeightSite]) -> Matrix | str:
    """Rows of a kernel with its height, columns with its width."""
    site = sites[0]
    if site.kind != "conv" or len(site.axes) != 4:
        return matrix
    out, into, *space = site.equation.params["dimension_numbers"].rhs_spec
    height, width = (site.axes[axis] for axis in space)
    rows, columns = (*height, *site.axes[into]), (*width, *site.axes[out])
    if sorted((*rows, *columns, *matrix.stack)) != list(range(len(matrix.shape))):
        return matrix
    return dataclasses.replace(
        matrix, rows=tuple(sorted(rows)), columns=tuple(sorted(columns))
    )


def _spectrum(matrix: Matrix, value: Any) -> Any:
    if not bool(jnp.isfinite(value).all()):
        raise NonFiniteWeightsError(
            f"{matrix.path}: expected finite weights, got some infinite or nan. Mend "
            "them, or leave the leaf out of path."
        )
    return spectrum(matrix, value)


def _check_choice(rank: int | None, energy: float | None, budget: float | None) -> None:
    given = [value for value in (rank, energy, budget) if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"low_rank: expected one of rank, energy and budget, got {len(given)}. "
            "Give exactly one."
        )
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise ValueError(f"low_rank: expected a rank of at least 1, got {rank!r}.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"low_rank: expected an energy in (0, 1], got {energy!r}.")
    if budget is not None and not 0 < budget < 1:
        raise ValueError(f"low_rank: expected a budget in (0, 1), got {budget!r}.")
