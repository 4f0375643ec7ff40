"""Mixed precision by path: products in few bits, the rest in float32."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite, by_rules
from compiler.passes.globs import check_globs
from compiler.passes.precision.emit import Emit
from compiler.passes.precision.leaves import lowered, storable, stored
from compiler.passes.precision.plan import Everywhere, plan
from compiler.passes.precision.summary import grouped, left, share
from compiler.passes.precision.tables import FOLLOW, ISLANDS, LOW
from compiler.paths import matches
from compiler.rewrite import Event, Events
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

_FEW = ("bfloat16", "float16")


@register("pass", "cast")
@dataclasses.dataclass(frozen=True)
class Cast(Pass):
    r"""Computes products in few bits and everything delicate in float32.

    $$ x W \;\to\; \mathrm{low}(x)\,\mathrm{low}(W), \qquad
       |\mathrm{low}(x) - x| \le 2^{-9} |x| \;\text{in bfloat16} $$

    Operands of products are rounded to `dtype`, and so are results; the sums inside a
    product are accumulated in float32 by the hardware. What only moves or chooses
    (reshapes, relu, max pooling, masks) follows its operands, which is exact. Additions
    and multiplications follow where they stand between products: a product's result and
    weights go in, and only products take what comes out. Everything else stays float32:
    norms, softmax, losses, statistics, what loops carry, calls with derivative rules of
    their own, and in a training step the gradients of the weights once they are made,
    the optimizer, and the weights.

    Leaves stay float32, and gradients reach them; each is rounded once for a call,
    before a loop and not in it. Integers, keys, complex numbers and float64 are not
    touched.

    float16 has a range of 6e-8 to 65504: gradients underflow unless the loss is scaled,
    which is left to the training step. bfloat16 has the range of float32.

    Attributes:
        dtype: `"bfloat16"` or `"float16"`.
        params: what leaves are stored in; None leaves them as they are. Stored in few
            bits are leaves that nothing reads in float32 (look-ups apart).
        rules: pairs of a path's glob and the dtype there, `"float32"` among them; the
            first that matches counts.
        low: primitives that are products.
        follow: primitives that follow them.

    Raises:
        UnknownPathError: if a rule's glob names no operation.

    Micikevicius et al., "Mixed Precision Training", 2017,
    https://arxiv.org/abs/1710.03740; Kalamkar et al., "A Study of BFLOAT16 for Deep
    Learning Training", 2019, https://arxiv.org/abs/1905.12322.
    """

    dtype: str = "bfloat16"
    params: str | None = None
    rules: tuple[tuple[str, str], ...] = ()
    low: tuple[str, ...] = LOW
    follow: tuple[str, ...] = FOLLOW

    def __post_init__(self) -> None:
        asked = [("dtype", self.dtype), *((glob, d) for glob, d in self.rules)]
        asked += [] if self.params is None else [("params", self.params)]
        for what, dtype in asked:
            allowed = _FEW if what in ("dtype", "params") else (*_FEW, "float32")
            if dtype not in allowed:
                raise ValueError(
                    f"cast: {what}: expected {' or '.join(allowed)}, got {dtype!r}."
                )

    def decide(self, program: Program) -> Pass:
        """Nothing to choose; refuses rules for paths that are not there."""
        check_globs([glob for glob, _ in self.rules], program.graph)
        return self

    def rewrite(self, graph: Graph) -> Rewrite:
        """Rounds the operands of products, and the leaves if that is asked for."""
        events, prepare = Events(), None
        new = self._cast(graph, events)
        if self.params is not None:
            dtype = jnp.dtype(self.params)
            chosen = storable(new, dtype, events)
            if chosen:
                prepare = partial(lowered, graph.paths, chosen, dtype)
                new = self._cast(stored(graph, chosen, dtype), events := Events())
                what = f"stored in {self.params}"
                events.fired += [Event(path, what) for path in sorted(chosen)]
        if events.fired:
            events.fired.append(Event("total", share(new)))
        return Rewrite(new, prepare, events)

    def _cast(self, graph: Graph, events: Events) -> Graph:
        """Decides and emits, again where few bits entered bodies for the first time."""
        fired: list[Event] = []
        while True:
            nodes = plan(graph, self._kind, self._target)
            rule = Emit(nodes)
            rewrite = by_rules(graph, Everywhere(rule), known=True)
            fired += rewrite.events.fired
            graph = rewrite.graph
            if not rule.crossed:
                break
        events.fired += grouped(fired)
        events.skipped += [*rewrite.events.skipped, *left(nodes.values(), self.low)]
        return graph

    def _kind(self, primitive: str) -> str | None:
        if primitive in self.low:
            return "low"
        return "follow" if primitive in self.follow else None

    def _target(self, path: str) -> Any:
        named = (dtype for glob, dtype in self.rules if matches(glob, path))
        dtype = next(named, self.dtype)
        return None if dtype == "float32" else jnp.dtype(dtype)


def _named(dtype: Any) -> str:
    return dtype if isinstance(dtype, str) else jnp.dtype(dtype).name


def cast(
    dtype: Any = "bfloat16",
    *,
    params: Any = None,
    rules: Dict[str, str] | Sequence[tuple[str, str]] = (),
    islands: bool = True,
    low: Sequence[str] = LOW,
    follow: Sequence[str] = FOLLOW,
) -> Cast:
    """Mixed precision by path; see [`Cast`][].

    Args:
        dtype: of products, `"bfloat16"` or `"float16"`, or `jnp.bfloat16`.
        params: what leaves are stored in; None leaves them as they are.
        rules: from a path's glob to a dtype: `{"head": "float32"}`.
        islands: False lets also softmax and norms be done in few bits, where they
            stand between products.
        low: primitives that are products.
        follow: primitives that follow them.

    >>> import jax, compiler as mc
    >>> def forward(w, x):
    ...     return jax.nn.softmax(jnp.maximum(x @ w["a"] + 0.5, 0.0) @ w["b"])
    >>> weights = {"a": jnp.eye(4), "b": jnp.eye(4)}
    >>> program = cast()(mc.trace(forward, weights, jnp.ones((2, 4))))
    >>> for event in program.history[-1].events.fired:
    ...     print(event.what)
    add, broadcast_in_dim, 2 dot_general, 2 max, reduce_max, stop_gradient in bfloat16
    of 174 floating operations 87% in bfloat16, 13% in float32
    """
    if dtype == "float16" or params == "float16":
        warnings.warn(
            "float16 has a range of 6e-8 to 65504: scale the loss, or use bfloat16",
            stacklevel=2,
        )
    pairs = rules.items() if isinstance(rules, Dict) else rules
    following = (*follow, *(() if islands else ISLANDS))
    kept = params if params is None else _named(params)
    return Cast(
        _named(dtype), kept, tuple((g, d) for g, d in pairs), tuple(low), following
    )
