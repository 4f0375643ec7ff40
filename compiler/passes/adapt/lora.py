"""Low-rank adapters: the weights stay, a few new parameters are trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler.graph import Graph, Leaf
from compiler.passes.adapt.adapted import adapted
from compiler.passes.adapt.begin import gaussian, principal
from compiler.passes.adapt.plan import Adapter, Plan, has_adapter, plan
from compiler.passes.adapt.storage import Held, Storage
from compiler.passes.base import Pass, Rewrite
from compiler.passes.factorize.matrix import Matrix, as_matrix, chosen
from compiler.rewrite import Event, Events
from compiler.sites import WeightSite
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

_INITS = ("gaussian", "pissa")
_REWRITTEN = "quantized and rewritten since; put lora right after the quantizing pass"


@register("pass", "lora")
@dataclasses.dataclass(frozen=True)
class Lora(Pass):
    r"""Adds a trainable product of low rank to weights, and freezes the rest.

    $$ y = x W + \frac{\alpha}{r}\,(x A) B, \qquad
       A \in \mathbb{R}^{m \times r},\ B \in \mathbb{R}^{r \times n} $$

    B is zero at first, so the adapted program computes what the program did; A is
    normal with variance 1 / m. Where the weight meets a product, convolution or
    look-up, A B is not multiplied out; elsewhere (a kernel that is normalised or
    concatenated first, a grouped convolution) it is, and the report says so. The
    function is that of the weights W + (alpha / r) A B, wherever they are used: a
    tied weight has one adapter, a stack of weights one for each layer.

    A weight that was quantized just before stays as it is stored, and its products
    stay what they are, of integers or decoded a tile at a time; the adapter is as it
    would be of the floating weight. Nothing of a floating weight is made. (A bias that
    a static product of integers took up in its sums is added in floating point then,
    which moves it by half a step of the sums at most.)

    The new program takes `mapping.Variables`: its params are the adapters, its state
    all that is frozen, under the paths it had before. So whatever trains params
    trains the adapters. [`merge`][] folds them into the weights again.

    Attributes:
        rank: r.
        alpha: of the scale alpha / r.
        path: globs of the weights, or of the operations that use them.
        train: globs of leaves that are trained as they are (biases, norms, a head).
        stable: whether the scale is alpha / sqrt(r), as large for every rank.
        init: `"gaussian"`; or `"pissa"`: A and B begin as the leading singular
            vectors of the weight, and W as what remains of it (of weights that are
            not quantized: what remains would have to be rounded again).
        lookups: whether a leaf that is looked up only (an embedding) gets one too.
        seed: of A; each adapter's key is folded in by path.
        plan: what was decided.

    Raises:
        ValueError: if a field is out of range.
        UnknownPathError: if a glob names nothing.

    Hu et al., 2021, https://arxiv.org/abs/2106.09685; the scale after Kalajdzievski,
    2023, https://arxiv.org/abs/2312.03732; pissa after Meng, Wang & Zhang, 2024,
    https://arxiv.org/abs/2404.02948; on quantized weights after Dettmers et al., 2023,
    https://arxiv.org/abs/2305.14314.
    """

    rank: int = 8
    alpha: float = 16.0
    path: tuple[str, ...] = ("*",)
    train: tuple[str, ...] = ()
    stable: bool = False
    init: str = "gaussian"
    lookups: bool = False
    seed: int = 0
    plan: Plan | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", tuple(self.path))
        object.__setattr__(self, "train", tuple(self.train))
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"lora: expected a rank of at least 1, got {self.rank!r}.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"lora: expected a positive alpha, got {self.alpha!r}.")
        if self.init not in _INITS:
            raise ValueError(f"lora: expected an init of {_INITS}, got {self.init!r}.")

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.stable else self.rank)

    def decide(self, program: Program) -> Pass:
        """Names the adapters, so that [`merge`][] finds them again."""
        decided = self._plan(Storage.of(program.graph), Events())
        return dataclasses.replace(self, plan=decided)

    def rewrite(self, graph: Graph) -> Rewrite:
        """Adds the adapters, and tells params from state."""
        events, before = Events(), Storage.of(graph)
        decided = self._plan(before, events)
        if not decided.adapters:
            return Rewrite(graph, None, events)
        logical = adapted(before, decided, events)
        after = before.changed(logical, dict(decided.renamed))
        prepare = self._prepare(decided, before, after)
        return Rewrite(after.physical(graph), prepare, events)

    def _plan(self, before: Storage, events: Events) -> Plan:
        matrices, graph = [], before.logical
        for leaf, sites in chosen(graph, self.path):
            matrix = self._as_matrix(before, leaf, sites)
            if isinstance(matrix, Matrix):
                matrices.append(matrix)
            else:
                events.skipped.append(Event(leaf.path, matrix))
        trained = []
        for leaf, _ in chosen(graph, self.train):
            scheme = before.scheme(leaf.path)
            if scheme is None:
                trained.append(leaf.path)
            else:
                why = f"is stored in {scheme} and cannot be trained itself"
                events.skipped.append(Event(leaf.path, why))
        return plan(graph, matrices, self.rank, self.scale, trained)

    def _as_matrix(
        self, before: Storage, leaf: Leaf, sites: Sequence[WeightSite]
    ) -> Matrix | str:
        graph, scheme = before.logical, before.scheme(leaf.path)
        if has_adapter(graph, leaf.path):
            return "has an adapter already"
        if before.trained:
            return (
                "is of a program that trains its weights in few bits; convert it first"
            )
        if leaf.path in before.parts:
            return _REWRITTEN
        if leaf.path in graph.carried:
            return "returned by the function, moved: it has to stay what it is"
        if sites and not self.lookups and all(s.kind == "lookup" for s in sites):
            return "is looked up only; lookups=True adapts it"
        if self.init == "pissa" and scheme is not None:
            return (
                f"is stored in {scheme}: what pissa leaves of it would be rounded "
                "again. Put lora before the quantizing, or begin with init='gaussian'"
            )
        return as_matrix(leaf, sites)

    def _prepare(self, decided: Plan, before: Storage, after: Storage) -> Any:
        specs = {leaf.path: leaf.spec for leaf in after.logical.leaves}
        names = dict(decided.renamed)

        def prepare(leaves: Sequence[Any]) -> list[Any]:
            held = before.held(leaves)
            made: Held = {names[path]: found for path, found in held.items()}
            for path, value in self._begin(decided.adapters, made).items():
                made[path] = {"": value.astype(specs[path].dtype)}
            return after.leaves(made)

        return prepare

    def _begin(self, adapters: Sequence[Adapter], held: Held) -> dict[str, Any]:
        """What the adapters begin with, and weights that change for it."""
        made: dict[str, Any] = {}
        if self.init == "pissa":
            for adapter in adapters:
                names = (adapter.base, adapter.a, adapter.b)
                values = principal(adapter, held[adapter.base][""])
                made |= zip(names, values, strict=True)
            return made
        made = gaussian(adapters, self.seed)
        zeros = {a.b: jnp.zeros(a.matrix.factors(a.rank)[1]) for a in adapters}
        return made | zeros


def lora(
    rank: int = 8,
    alpha: float = 16.0,
    *,
    path: str | Sequence[str] = "*",
    train: str | Sequence[str] = (),
    stable: bool = False,
    init: str = "gaussian",
    lookups: bool = False,
    seed: int = 0,
) -> Lora:
    """Low-rank adapters on weights; see [`Lora`][].

    >>> import jax, compiler as mc
    >>> program = mc.trace(lambda v, x: x @ v["w"], {"w": jnp.eye(8)}, jnp.ones((1, 8)))
    >>> adapted = lora(rank=2)(program)
    >>> jax.tree.map(jnp.shape, adapted.variables.params)
    {'w': {'lora_a': (8, 2), 'lora_b': (2, 8)}}
    >>> adapted.graph.paths
    ['state/w', 'params/w/lora_a', 'params/w/lora_b']
    """
    paths = (path,) if isinstance(path, str) else tuple(path)
    trained = (train,) if isinstance(train, str) else tuple(train)
    return Lora(rank, alpha, paths, trained, stable, init, lookups, seed)
