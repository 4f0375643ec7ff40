"""Which scheme a weight gets: by path and kind of product, the first that matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from compiler.graph import Leaf
from compiler.passes.globs import names_of
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme
from compiler.paths import matches
from compiler.sites import PRODUCTS, WeightSite
from mapping.core import register

KINDS = ("*", *PRODUCTS.values())
SAME = "same"


@register("value", "quantize_rule")
@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to the weights at some paths.

    Attributes:
        path: a glob, of the leaf or of the operation that uses it.
        kind: `"dot"`, `"conv"`, `"ragged"`, `"lookup"`, or `"*"`.
        scheme: of the weight; None leaves it as it is.
        activations: how what it meets is rounded; None does not, `"same"` as
            everywhere.

    Raises:
        ValueError: if there is no such kind.

    >>> str(Rule("head/*", scheme="int4"))
    'head/* (*) -> int4 group 32 mse'
    """

    path: str = "*"
    kind: str = "*"
    scheme: Scheme | str | None = None
    activations: Activations | str | None = SAME

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rule: expected a kind of {KINDS}, got {self.kind!r}.")
        if self.scheme is not None:
            object.__setattr__(self, "scheme", as_scheme(self.scheme))

    def applies(self, leaf: Leaf, sites: Sequence[WeightSite]) -> bool:
        """Whether it is about this leaf."""
        products = [site.kind for site in sites if site.kind != "lookup"]
        kind = (products or [site.kind for site in sites] or [""])[0]
        return self.kind in ("*", kind) and any(
            matches(self.path, name) for name in names_of(leaf, sites)
        )

    def __str__(self) -> str:
        """The rule as it was written."""
        return f"{self.path} ({self.kind}) -> {self.scheme or 'left as it is'}"


RuleSpec: TypeAlias = (
    Mapping[str, "Scheme | str | Rule | None"] | Sequence["Rule | tuple[str, ...]"]
)


def as_rules(given: RuleSpec, skip: str | Sequence[str] = ()) -> tuple[Rule, ...]:
    """Rules of what users write: a dict from globs to schemes, or rules in order.

    >>> [str(rule) for rule in as_rules({"head/*": None, "*": "int8"})]
    ['head/* (*) -> left as it is', '* (*) -> int8']
    """
    globs = (skip,) if isinstance(skip, str) else tuple(skip)
    first = tuple(Rule(glob) for glob in globs)
    if isinstance(given, Mapping):
        return first + tuple(
            spec if isinstance(spec, Rule) else Rule(glob, scheme=spec)
            for glob, spec in given.items()
        )
    return first + tuple(r if isinstance(r, Rule) else Rule(*r) for r in given)
