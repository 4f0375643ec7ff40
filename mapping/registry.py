"""Names: what can be built from a configuration, and is held to the conformance suite.

>>> lookup("layer", "dense").name
'dense'
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from mapping.errors import RegistrationError, UnknownNameError
from mapping.paths import nearest

KINDS = (
    "layer",
    "model",
    "loss",
    "optimizer",
    "metric",
    "augmentation",
    "combinator",
    "value",
    "function",
    "pass",
)
"""What can be registered. `function` and `value` are what fields hold."""

_OURS = {
    "layer": "mapping.layers",
    "model": "mapping.models",
    "loss": "mapping.losses",
    "optimizer": "mapping.optimizers",
    "metric": "mapping.metrics",
    "augmentation": "mapping.augment",
    "value": "mapping.sparse.optimizer",
    "combinator": "mapping.combinators",
}

Made = TypeVar("Made", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Example:
    """A mapping with inputs it takes, to be tried by the conformance suite.

    Attributes:
        mapping: an instance.
        inputs: what it is called with: arrays, or specs that random ones are made for.
        batched: whether it treats leading axes before the first as more of the batch.
        differentiable: whether its outputs have a derivative that differences agree
            with; a straight-through one does not.
        caches: whether its state moves in inference too (a decoder's cache).
        keeps_dtype: whether its outputs have its inputs' dtype; a metric counts.
        value: whether it equals its copy and has a configuration; an adapter of a
            foreign module may not.
        tolerance: of bfloat16 against float32, relative to the largest output.

    >>> from mapping.layers import Dense
    >>> Example(Dense(4), (jax.ShapeDtypeStruct((2, 3), "float32"),)).batched
    True
    """

    mapping: Any
    inputs: tuple[Any, ...]
    batched: bool = True
    differentiable: bool = True
    caches: bool = False
    keeps_dtype: bool = True
    value: bool = True
    tolerance: float = 0.05


def spec(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """The shape and dtype of an example input.

    >>> spec(2, 3)
    ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape, dtype)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a name stands for.

    Attributes:
        kind: one of [`KINDS`][].
        name: unique among its kind.
        target: the class or function itself.
        examples: makes the [`Example`][]s it is tried on.
    """

    kind: str
    name: str
    target: Any
    examples: Callable[[], Any] | None = None

    @property
    def label(self) -> str:
        """`kind/name`, as configurations write it."""
        return f"{self.kind}/{self.name}"

    def fields(self) -> dict[str, inspect.Parameter]:
        """What building it takes, by name."""
        return dict(inspect.signature(self.target).parameters)

    def make_examples(self) -> tuple[Example, ...]:
        """The examples, as a tuple."""
        made = () if self.examples is None else self.examples()
        return (made,) if isinstance(made, Example) else tuple(made)


_entries: dict[tuple[str, str], Entry] = {}


def register(
    kind: str,
    name: str,
    *,
    examples: Callable[[], Example | tuple[Example, ...]] | None = None,
) -> Callable[[Made], Made]:
    """Gives a class or function a name by which it can be built and saved.

    A registered mapping is built by `build(kind, name, ...)`, written by `to_config`
    and read by `from_config`; with `examples` it is held to the conformance suite.
    A package announces its own under the entry point group `mapping.<kind>`.

    Args:
        kind: one of [`KINDS`][].
        name: unique among its kind.
        examples: makes one [`Example`][] or several.

    Raises:
        RegistrationError: if the kind is none, or the name is taken.

    >>> import dataclasses, mapping as mp
    >>> @register("layer", "doctest_double")
    ... @dataclasses.dataclass(frozen=True)
    ... class Double(mp.Mapping):
    ...     def apply(self, variables, x, *, ctx):
    ...         return 2 * x, variables.state
    >>> build("layer", "doctest_double") == Double()
    True
    """
    _check_kind(kind)

    def enter(target: Made) -> Made:
        known = _entries.get((kind, name))
        if known is not None and _identity(known.target) != _identity(target):
            raise RegistrationError(
                f"{kind}/{name}: expected a free name, got that of "
                f"{'.'.join(_identity(known.target))}. Choose another."
            )
        _entries[kind, name] = Entry(kind, name, target, examples)
        return target

    return enter


def lookup(kind: str, name: str) -> Entry:
    """Finds what a name stands for, in this package and in installed ones.

    Raises:
        UnknownNameError: if nothing has that name; it lists the nearest.

    >>> lookup("layer", "dens")
    Traceback (most recent call last):
    ...
    mapping.errors.UnknownNameError: layer/dens: not registered. Nearest: dense, ...
    """
    _check_kind(kind)
    for each in (kind, *KINDS):  # a loss may live beside the model it is for
        if (kind, name) not in _entries:
            _load_ours(each)
    if (kind, name) not in _entries:
        _load_installed(kind, name)
    if (kind, name) not in _entries:
        known = [entry.name for entry in entries(kind)]
        raise UnknownNameError(
            f"{kind}/{name}: not registered. Nearest: {nearest(name, known)}. Import "
            f"the module that registers it, or register("
            f'"{kind}", "{name}").'
        )
    return _entries[kind, name]


def entry_of(target: Any) -> Entry | None:
    """Finds the entry of a class or function, if it has one."""
    for entry in _entries.values():
        if entry.target is target:
            return entry
    return None


def entries(kind: str | None = None) -> tuple[Entry, ...]:
    """Lists what is registered, of one kind or of all, by name.

    >>> "dense" in [entry.name for entry in entries("layer")]
    True
    """
    kinds = KINDS if kind is None else (kind,)
    for each in kinds:
        _check_kind(each)
        _load_ours(each)
        _load_installed(each)
    found = [entry for entry in _entries.values() if entry.kind in kinds]
    return tuple(sorted(found, key=lambda entry: entry.label))


def build(kind: str, name: str, /, *args: Any, **fields: Any) -> Any:
    """Makes what `name` stands for.

    Raises:
        UnknownNameError: if the name, or a field, is unknown; it lists the nearest.
        RegistrationError: if a field is missing.

    >>> build("layer", "dense", features=8)
    Dense(features=8, use_bias=True, kernel_init=None, bias_init=None)
    """
    entry = lookup(kind, name)
    check_arguments(entry.label, entry.target, list(entry.fields()), fields, *args)
    return entry.target(*args, **fields)


def check_arguments(
    label: str, make: Any, known: list[str], fields: dict[str, Any], *args: Any
) -> None:
    """Refuses misspelt and missing fields, with the nearest ones."""
    for name in fields:
        if name not in known:
            raise UnknownNameError(
                f"{label}: has no field {name!r}. Nearest: {nearest(name, known)}."
            )
    try:
        inspect.signature(make).bind(*args, **fields)
    except TypeError as error:
        raise RegistrationError(
            f"{label}: {error}. Its fields: {', '.join(known)}."
        ) from error


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise RegistrationError(
            f"{kind!r}: expected a kind of thing, got none. Choose from "
            f"{', '.join(KINDS)}."
        )


def _identity(target: Any) -> tuple[str, str]:
    """A module that is read again defines the same things anew."""
    return (
        getattr(target, "__module__", ""),
        getattr(target, "__qualname__", repr(target)),
    )


def _load_ours(kind: str) -> None:
    if kind in _OURS:
        importlib.import_module(_OURS[kind])


def _load_installed(kind: str, name: str | None = None) -> None:
    """Enters what installed packages announce, all of a kind or one name of it."""
    for point in importlib.metadata.entry_points(group=f"mapping.{kind}"):
        if name in (None, point.name) and (kind, point.name) not in _entries:
            register(kind, point.name)(point.load())
