"""Mappings inside a mapping: found by path or type, and exchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

from mapping.combinators.lift import as_mapping
from mapping.combinators.steps import Steps
from mapping.core import Mapping
from mapping.errors import SelectorError
from mapping.model import Model
from mapping.tree.selection import Selection


@dataclasses.dataclass(frozen=True)
class Nested(Selection):
    """Some of the mappings that a mapping is made of. Made by `select(net)`.

    A mapping's path is the names of steps and fields that lead to it; the outermost
    mapping itself is not among them. Whatever is exchanged, the rest keeps its names,
    and so its params: a step whose derived name would change is given the old one.

    Attributes:
        tree: the outermost mapping; a changed one is a new value.
        paths: the selected ones, outer before inner.

    >>> import jax, mapping as mp
    >>> from mapping.layers import Dense, Dropout
    >>> from mapping.tree import select
    >>> net = mp.Serial(body=Dense(8) >> Dropout(0.5) >> jax.nn.relu, head=Dense(2))
    >>> select(net).paths
    ('body', 'body/dense', 'body/dropout', 'body/relu', 'head')
    >>> still = select(net).at(Dropout).set(Dropout(0.0))
    >>> still == mp.Serial(body=Dense(8) >> Dropout(0.0) >> jax.nn.relu, head=Dense(2))
    True
    >>> wide = select(net).at("body/dense").apply(
    ...     lambda dense: dataclasses.replace(dense, features=16))
    >>> select(wide).leaves()["body/dense"].features
    16
    """

    leaves_are: ClassVar[str] = "nested mappings"

    @classmethod
    def of(cls, mapping: Mapping) -> Self:
        """Selects every mapping nested in `mapping`."""
        return cls(mapping, tuple(_nested(mapping)))

    def at(self, *selectors: Any) -> Self:
        """Narrows the selection, as of arrays; a type finds no part it cannot exchange.

        Raises:
            SelectorError: if a type also names what a `Model` makes in `parts()`.
        """
        for kind in selectors:
            if isinstance(kind, type) and issubclass(kind, Mapping):
                _check_reached(self.tree, kind, self.everything())
        return super().at(*selectors)

    def everything(self) -> dict[str, Any]:
        """Every nested mapping by path."""
        return _nested(self.tree)

    def apply(self, function: Callable[[Any], Any]) -> Mapping:
        """Returns the mapping with `function` applied to each selected one.

        Inner ones first: `function` is given a mapping whose own parts are changed.
        """
        chosen = set(self.paths)

        def change(path: str, mapping: Mapping) -> Mapping:
            mapping = _changed(mapping, change, f"{path}/")
            return as_mapping(function(mapping)) if path in chosen else mapping

        return _changed(self.tree, change, "")

    def mask(self) -> Any:
        """Not of a mapping, which holds no arrays."""
        raise SelectorError(
            f"{self.tree.kind}: expected a tree of arrays to mask or partition, got a "
            "mapping. Select among its params: select(variables.params)."
        )

    partition = mask


def _check_reached(
    tree: Mapping, kind: type[Mapping], reached: dict[str, Mapping]
) -> None:
    """Refuses a type that some parts have and cannot lose: their model makes them."""
    known = set(map(id, reached.values()))
    for path, model in {"": tree, **reached}.items():
        parts = model.parts() if isinstance(model, Model) else {}
        for name, part in parts.items():
            inside = [part, *_nested(as_mapping(part)).values()]
            if any(isinstance(m, kind) and id(m) not in known for m in inside):
                raise SelectorError(
                    f"{kind.__name__}: {path or '(root)'} ({model.kind}) makes its "
                    f"part {name!r} anew in parts(), where nothing can be exchanged. "
                    f"Change the fields of {model.kind} that it is made from."
                )


Visit = Callable[[str, Mapping], Mapping]


def _nested(mapping: Mapping, prefix: str = "") -> dict[str, Mapping]:
    found = {}

    def note(path: str, inner: Mapping) -> Mapping:
        found[path] = inner
        found.update(_nested(inner, f"{path}/"))
        return inner

    _changed(mapping, note, prefix)
    return found


def _changed(mapping: Mapping, visit: Visit, prefix: str) -> Mapping:
    """The mapping with each of its direct parts replaced by what `visit` returns."""
    changed = {}
    for field in dataclasses.fields(mapping):
        value = getattr(mapping, field.name)
        if field.name == "steps" and isinstance(mapping, Steps):
            new = _changed_steps(mapping, visit, prefix)
        elif field.init:
            new = _changed_value(value, visit, f"{prefix}{field.name}")
        else:
            new = value
        if new is not value:
            changed[field.name] = new
    return _rebuilt(mapping, changed) if changed else mapping


def _changed_value(value: Any, visit: Visit, path: str) -> Any:
    """A field's value: a mapping, or tuples of mappings, named or numbered."""
    if isinstance(value, Mapping):
        return visit(path, value)
    if type(value) is not tuple:
        return value
    new = tuple(
        _changed_part(part, visit, path, number) for number, part in enumerate(value)
    )
    return value if all(a is b for a, b in zip(new, value, strict=True)) else new


def _changed_part(part: Any, visit: Visit, path: str, number: int) -> Any:
    pair = type(part) is tuple and len(part) == 2
    if not pair or not isinstance(part[0], str) or not isinstance(part[1], Mapping):
        return _changed_value(part, visit, f"{path}/{number}")
    new = visit(f"{path}/{part[0]}", part[1])
    return part if new is part[1] else (part[0], new)


def _changed_steps(mapping: Steps, visit: Visit, prefix: str) -> Any:
    new = [visit(f"{prefix}{name}", step) for name, step in mapping.children]
    if all(a is b for a, (_, b) in zip(new, mapping.steps, strict=True)):
        return mapping.steps
    pairs = tuple((name, a) for (name, _), a in zip(mapping.steps, new, strict=True))
    if _rebuilt(mapping, {"steps": pairs}).names != mapping.names:
        return tuple(zip(mapping.names, new, strict=True))
    return pairs


def _rebuilt(mapping: Any, changed: dict[str, Any]) -> Any:
    if not hasattr(mapping, "from_fields"):
        return dataclasses.replace(mapping, **changed)
    own = {
        field.name: getattr(mapping, field.name)
        for field in dataclasses.fields(mapping)
        if field.init
    }
    return type(mapping).from_fields(**{**own, **changed})
