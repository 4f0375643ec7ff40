"""Which weights get adapters, and what the leaves are called then."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from compiler.graph import Graph, Packing, free_path
from compiler.passes.factorize.matrix import Matrix
from compiler.passes.globs import shortened
from mapping.core import register

_A, _B = "lora_a", "lora_b"


@register("value", "lora_adapter")
@dataclasses.dataclass(frozen=True)
class Adapter:
    """The adapter of one weight.

    Attributes:
        matrix: how the weight is a stack of matrices.
        rank: of the adapter.
        scale: what the product of its factors is multiplied by.
        base: the path of the weight.
        a: the path of the factor that meets the input first.
        b: the path of the other, zero at first.
    """

    matrix: Matrix
    rank: int
    scale: float
    base: str
    a: str
    b: str


@register("value", "lora_plan")
@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of a program's leaves.

    Attributes:
        adapters: those that are added.
        renamed: the old and the new path of every leaf there was.
        bundled: whether the program took `mapping.Variables` before.
    """

    adapters: tuple[Adapter, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    bundled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", tuple(self.adapters))
        object.__setattr__(self, "renamed", tuple(map(tuple, self.renamed)))

    def specs(self, graph: Graph) -> dict[str, jax.ShapeDtypeStruct]:
        """The new leaves in order: an adapter follows its weight."""
        new = dict(self.renamed)
        owners = {adapter.base: adapter for adapter in self.adapters}
        found = {}
        for leaf in graph.leaves:
            path = new[leaf.path]
            found[path] = leaf.spec
            if path in owners:
                adapter = owners[path]
                shapes = adapter.matrix.factors(adapter.rank)
                for name, shape in zip((adapter.a, adapter.b), shapes, strict=True):
                    found[name] = jax.ShapeDtypeStruct(shape, leaf.spec.dtype)
        return found


@dataclasses.dataclass(frozen=True)
class Partitioned(Packing):
    """Leaves as `mapping.Variables`: what is trained, and what is frozen.

    Attributes:
        before: how the leaves were packed before they were told apart.
    """

    before: Packing = dataclasses.field(default_factory=Packing)


def has_adapter(graph: Graph, path: str) -> bool:
    """Whether a leaf is an adapter, or has one."""
    return path.endswith((f"/{_A}", f"/{_B}")) or adapter_path(path, _A) in graph.paths


def plan(
    graph: Graph,
    matrices: Sequence[Matrix],
    rank: int,
    scale: float,
    trained: Sequence[str],
) -> Plan:
    """Names every leaf: what is frozen is state, what is trained params.

    Args:
        graph: what is adapted.
        matrices: the weights that get an adapter.
        rank: of each.
        scale: of each.
        trained: paths of leaves that are trained themselves.
    """
    again = isinstance(graph.packing, Partitioned) or any(
        path.endswith(f"/{_A}") for path in graph.paths
    )
    taken: set[str] = set()

    def claim(path: str) -> str:
        free = free_path(path, taken)
        taken.add(free)
        return free

    renamed = {path: path for path in graph.paths} if again else {}
    taken.update(renamed)
    for path in graph.paths if not again else ():
        prefix = "params" if path in trained else "state"
        name = shortened(path)[-1] if path in trained else path
        renamed[path] = claim(f"{prefix}/{name}")
    adapters = [
        Adapter(
            matrix,
            rank,
            scale,
            renamed[matrix.path],
            claim(adapter_path(matrix.path, _A)),
            claim(adapter_path(matrix.path, _B)),
        )
        for matrix in matrices
    ]
    return Plan(tuple(adapters), tuple(renamed.items()), graph.packing.bundled)


def adapter_path(path: str, name: str = _A) -> str:
    """Where the adapter of a leaf stands.

    >>> adapter_path("state/params/dense/kernel")
    'params/dense/kernel/lora_a'
    """
    return f"params/{shortened(path)[-1]}/{name}"
