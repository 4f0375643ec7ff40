"""Different optimizers for different params, by path."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from collections.abc import Mapping as Dict
from typing import Any

import optax

from mapping.core import Tree
from mapping.optimizers.optimizer import Optimizer, as_transform, tried
from mapping.optimizers.rules import check_globs, label
from mapping.registry import register
from mapping.tree import select


@register(
    "optimizer",
    "partition",
    examples=lambda: tried(
        Partition((("*/bias", freeze()), ("*", Optimizer.of(optax.sgd, 0.1))))
    ),
)
@dataclasses.dataclass(frozen=True)
class Partition(Optimizer):
    """Each param is given to the first rule that names its path.

    Made by [`partition`][].

    Attributes:
        rules: pairs of a glob and what [`as_transform`][] takes.
    """

    rules: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        check_globs([glob for glob, _ in self.rules], "partition")
        for glob, rule in self.rules:
            as_transform(rule, f"partition[{glob!r}]")

    def transform(self) -> optax.GradientTransformation:
        """`optax.partition`, labelled by path."""
        globs = [glob for glob, _ in self.rules]
        groups: dict[Hashable, optax.GradientTransformation] = {
            glob: as_transform(rule) for glob, rule in self.rules
        }
        return optax.partition(groups, lambda tree: label(tree, globs, "partition"))


def partition(rules: Dict[str, Any]) -> Partition:
    """Gives each param to the first rule whose glob names its path.

    Args:
        rules: optimizers by glob, in order of precedence (`*` also crosses `/`).

    Raises:
        FieldError: if a rule is no optimizer.
        UnknownPathError: when it meets params that no rule names, or a rule that
            names no param or none that an earlier one has left.

    >>> import jax.numpy as jnp
    >>> from mapping.optimizers import sgd
    >>> params = {"body": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
    >>> transform = partition({"head/*": sgd(0.5), "*": freeze()}).transform()
    >>> updates, _ = transform.update(params, transform.init(params), params)
    >>> updates["head"]["kernel"].tolist(), updates["body"]["kernel"].tolist()
    ([-0.5, -0.5], [0.0, 0.0])
    """
    return Partition(tuple(rules.items()))


def freeze() -> Optimizer:
    """Leaves params exactly as they are: no update, no weight decay, no moments.

    >>> freeze()
    set_to_zero()
    """
    return Optimizer.of(optax.set_to_zero)


@register("value", "decay_mask")
@dataclasses.dataclass(frozen=True)
class DecayMask:
    """Says by path which params decay. Made by [`decay_mask`][].

    Attributes:
        globs: of the paths that do.
        but: globs of paths among those that do not.
    """

    globs: tuple[str, ...]
    but: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_globs([*self.globs, *self.but], "decay_mask")

    def __call__(self, params: Tree) -> Tree:
        """Returns a tree of booleans."""
        return select(params).at(*self.globs).without(*self.but).mask()


def decay_mask(*globs: str, but: tuple[str, ...] = ()) -> DecayMask:
    """Makes the `mask=` of an optax transform, by path, as a value.

    Args:
        *globs: of the params that the transform is for.
        but: globs of params among those that it is not for.

    Raises:
        UnknownPathError: when a glob names none of the params.

    >>> decay_mask("*/kernel")({"dense": {"kernel": 1.0, "bias": 2.0}})
    {'dense': {'bias': False, 'kernel': True}}
    >>> from mapping.optimizers import adamw
    >>> adamw(1e-3, mask=decay_mask("*/kernel")) == adamw(
    ...     1e-3, mask=decay_mask("*/kernel"))
    True
    """
    return DecayMask(globs, but)
