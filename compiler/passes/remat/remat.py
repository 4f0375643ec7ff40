"""Rematerialisation by path: less is kept for the gradient, more computed again."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from compiler.graph import Graph
from compiler.passes.base import Pass, Rewrite
from compiler.passes.globs import check_globs
from compiler.passes.remat.blocks import Blocks
from compiler.paths import operations
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

_PLAIN = (
    "nothing_saveable",
    "everything_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)
_OF_NAMES = (
    "save_only_these_names",
    "save_any_names_but_these",
    "save_anything_except_these_names",
)


@register("pass", "remat")
@dataclasses.dataclass(frozen=True)
class Remat(Pass):
    r"""Lets a gradient recompute blocks instead of keeping what happens in them.

    Differentiating a program keeps every intermediate value the backward pass reads. Of
    a rematerialised block only what flows in is kept, and what the policy names; the
    rest is computed a second time. With $n$ blocks of $k$ values the memory falls from
    $O(nk)$ to $O(n + k)$ for one more forward pass. Values and gradients are the same
    numbers.

    A block is what stands under the shortest path the glob names: `encoder/*` makes
    one of each `encoder/block_3`. A loop that stands at such a path is rematerialised
    inside: each iteration is a block. Where a value leaves a block and comes back, the
    block is divided. Operations with effects (printing) stay outside, so they happen
    once.

    Of a graph that contains its gradient already, nothing is changed: what is kept was
    decided when that was traced.

    Attributes:
        path: globs of blocks.
        policy: the name of a policy of `jax.checkpoint_policies`; `"dots"` is short for
            `"dots_saveable"`, and so on.
        names: of values marked by `jax.ad_checkpoint.checkpoint_name`, for a policy
            such as `"save_only_these_names"`.

    Raises:
        UnknownPathError: if a glob names no operation.

    Griewank & Walther, "Revolve", 2000; Chen et al., "Training Deep Nets with Sublinear
    Memory Cost", 2016, https://arxiv.org/abs/1604.06174.
    """

    path: tuple[str, ...]
    policy: str = "nothing_saveable"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = (*_PLAIN, *_OF_NAMES)
        if self.policy not in known:
            near = difflib.get_close_matches(self.policy, known, 3, 0.4) or known
            raise ValueError(
                f"remat: policy: expected a name of jax.checkpoint_policies, got "
                f"{self.policy!r}. Did you mean {' or '.join(near)}?"
            )
        if bool(self.names) != (self.policy in _OF_NAMES):
            raise ValueError(
                f"remat: names: {self.policy} takes "
                f"{'names, got none' if not self.names else f'none, got {self.names}'}."
            )

    def decide(self, program: Program) -> Pass:
        """Nothing to choose; refuses globs that name nothing."""
        check_globs(self.path, program.graph)
        return self

    def rewrite(self, graph: Graph) -> Rewrite:
        """Wraps each block in `jax.checkpoint`."""
        found = operations(graph)
        blocks = Blocks(self.path, self._policy())
        blocks.leave_gradients(found)
        jaxpr = blocks.wrap(graph.jaxpr, found, looped=False)
        if blocks.events.fired:
            graph = dataclasses.replace(graph, jaxpr=jaxpr)
        return Rewrite(graph, None, blocks.events)

    def _policy(self) -> Callable[..., Any]:
        policy = getattr(jax.checkpoint_policies, self.policy)
        return policy(*self.names) if self.names else policy


def remat(
    path: str | Sequence[str],
    policy: str = "nothing_saveable",
    names: str | Sequence[str] = (),
) -> Remat:
    """Recomputes blocks in the backward pass; see [`Remat`][].

    Args:
        path: a glob of blocks, or several.
        policy: what is kept all the same: `"dots"`, `"save_only_these_names"`, ...
        names: for a policy of names.

    >>> import jax.numpy as jnp, compiler as mc
    >>> def mlp(layers, x):
    ...     for name, kernel in layers.items():
    ...         with jax.named_scope(name):
    ...             x = jnp.sin(jnp.tanh(x @ kernel))
    ...     return x
    >>> layers = {"one": jnp.eye(2), "two": jnp.eye(2)}
    >>> program = mc.trace(mlp, layers, jnp.ones((1, 2)))
    >>> for event in remat("*", "dots")(program).history[-1].events.fired:
    ...     print(event.path, "-", event.what)
    one - 3 operations are computed again for the gradient
    two - 3 operations are computed again for the gradient
    """
    globs = (path,) if isinstance(path, str) else tuple(path)
    own = (names,) if isinstance(names, str) else tuple(names)
    short = f"{policy}_saveable"
    return Remat(globs, short if short in _PLAIN else policy, own)
