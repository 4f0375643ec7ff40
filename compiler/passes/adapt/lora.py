"""Low-rank adapters: the weights stay, a few new parameters are trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph, Leaf, drop_dead
from compiler.passes.adapt.plan import Adapter, Partitioned, Plan, has_adapter, plan
from compiler.passes.base import Pass, Rewrite
from compiler.passes.factorize.matrix import Matrix, as_matrix, chosen
from compiler.passes.factorize.rewriting import Report, factored, factorise
from compiler.passes.factorize.symbolic import evaluate
from compiler.rewrite import Event, Events
from compiler.sites import WeightSite
from mapping.core import fold_name, register

if TYPE_CHECKING:
    from compiler.program import Program

_INITS = ("gaussian", "pissa")


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
            vectors of the weight, and W as what remains of it.
        lookups: whether a leaf that is looked up only (an embedding) gets one too.
        seed: of A; each adapter's key is folded in by path.
        plan: what was decided.

    Raises:
        ValueError: if a field is out of range.
        UnknownPathError: if a glob names nothing.

    Hu et al., 2021, https://arxiv.org/abs/2106.09685; the scale after Kalajdzievski,
    2023, https://arxiv.org/abs/2312.03732; pissa after Meng, Wang & Zhang, 2024,
    https://arxiv.org/abs/2404.02948.
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
        return dataclasses.replace(self, plan=self._plan(program.graph, Events()))

    def rewrite(self, graph: Graph) -> Rewrite:
        """Adds the adapters, and tells params from state."""
        events = Events()
        decided = self._plan(graph, events)
        if not decided.adapters:
            return Rewrite(graph, None, events)
        specs, report = decided.specs(graph), Report()
        jaxpr = _with_adapters(graph, decided, specs, report, set())
        if report.repeated:
            jaxpr = _with_adapters(graph, decided, specs, Report(), report.repeated)
        new = graph.with_leaves(list(specs), jaxpr)
        before = graph.packing
        before = before.before if isinstance(before, Partitioned) else before
        new = dataclasses.replace(new, packing=Partitioned(None, True, before=before))
        for adapter in decided.adapters:
            events.fired.append(_told(adapter, report.multiplied(adapter.matrix.path)))
        return Rewrite(new, self._prepare(graph, decided, list(specs)), events)

    def _plan(self, graph: Graph, events: Events) -> Plan:
        matrices = []
        for leaf, sites in chosen(graph, self.path):
            matrix = self._as_matrix(graph, leaf, sites)
            if isinstance(matrix, Matrix):
                matrices.append(matrix)
            else:
                events.skipped.append(Event(leaf.path, matrix))
        trained = [leaf.path for leaf, _ in chosen(graph, self.train)]
        return plan(graph, matrices, self.rank, self.scale, trained)

    def _as_matrix(
        self, graph: Graph, leaf: Leaf, sites: Sequence[WeightSite]
    ) -> Matrix | str:
        if has_adapter(graph, leaf.path):
            return "has an adapter already"
        if leaf.path in graph.carried:
            return "returned by the function, moved: it has to stay what it is"
        if sites and not self.lookups and all(s.kind == "lookup" for s in sites):
            return "is looked up only; lookups=True adapts it"
        return as_matrix(leaf, sites)

    def _prepare(self, graph: Graph, decided: Plan, names: Sequence[str]) -> Any:
        bases = {adapter.base: adapter for adapter in decided.adapters}

        def prepare(leaves: Sequence[Any]) -> list[Any]:
            made = {}
            pairs = zip(decided.renamed, leaves, strict=True)
            for (_, new), value in pairs:
                made[new] = value
                if new in bases:
                    adapter = bases[new]
                    made[new], made[adapter.a], made[adapter.b] = self._values(
                        adapter, value
                    )
            return [made[name] for name in names]

        return prepare

    def _values(self, adapter: Adapter, value: Any) -> tuple[Any, Any, Any]:
        """The weight and the two factors that its adapter begins with."""
        matrix = adapter.matrix
        if self.init == "pissa":
            left, right = factorise(matrix, value, adapter.rank)
            root = math.sqrt(adapter.scale)
            part = factored(matrix, left, right, Report()).dense()
            return value - part, left / root, right / root
        first, second = matrix.factors(adapter.rank)
        key = fold_name(jax.random.key(self.seed), adapter.a)
        normal = jax.random.normal(key, first, jnp.float32)
        a = normal / math.sqrt(matrix.extents[1])
        return value, a.astype(value.dtype), jnp.zeros(second, value.dtype)


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

    >>> import compiler as mc
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


def _with_adapters(
    graph: Graph,
    decided: Plan,
    specs: dict[str, Any],
    report: Report,
    whole: set[str],
) -> jaxprs.Jaxpr:
    """The equations with adapters; those of `whole` are multiplied out once, first."""
    adapters = {adapter.base: adapter for adapter in decided.adapters}

    def adapted(new: str, given: dict[str, Any]) -> Any:
        adapter = adapters.get(new)
        if adapter is None:
            return given[new]
        a, b, base = given[adapter.a], given[adapter.b], given[new]
        value = factored(adapter.matrix, a, b, report, base, adapter.scale)
        return value.dense() if adapter.matrix.path in whole else value

    def function(*arguments: Any) -> list[Any]:
        given = dict(zip(specs, arguments, strict=False))
        leaves = [adapted(new, given) for _, new in decided.renamed]
        return evaluate(graph.jaxpr, [*leaves, *arguments[len(specs) :]])

    return drop_dead(jaxprs.make(function, [*specs.values(), *graph.inputs]))


def _told(adapter: Adapter, dense: Sequence[str]) -> Event:
    stack, rows, columns = adapter.matrix.extents
    text = (
        f"{rows} x {columns} adapted with rank {adapter.rank}, "
        f"{stack * adapter.rank * (rows + columns)} numbers to train"
    )
    if dense:
        text += f"; multiplied out for {', '.join(dense)}"
    return Event(adapter.matrix.path, text)
