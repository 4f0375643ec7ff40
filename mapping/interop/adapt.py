"""One door for what other libraries made."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import Any

import flax.linen as nn
import optax

from mapping.built import Built
from mapping.combinators import as_mapping
from mapping.core import Mapping
from mapping.errors import NotAMappingError, UnknownNameError
from mapping.layers.linen import Linen
from mapping.paths import nearest


def adapt(thing: Any, **options: Any) -> Mapping:
    """Makes a mapping of what another library made.

    | given                                    | becomes                        |
    |------------------------------------------|--------------------------------|
    | a mapping                                | itself                         |
    | a flax.linen module                      | [`Linen`][]                    |
    | a flax.nnx module, class, `Built` class  | [`Nnx`][]                      |
    | an equinox module, class, `Built` class  | [`Equinox`][]                  |
    | what `hk.transform` returned             | [`Haiku`][]                    |
    | a pair of functions `(init, apply)`      | [`Pair`][]                     |
    | a function                               | [`Lift`][mapping.Lift]         |

    A module that holds its own arrays starts from them: `init` returns them.

    Args:
        thing: any of these.
        **options: of the mapping it becomes, such as `batch_axis="batch"`.

    Raises:
        UnknownNameError: if it has no such option.
        NotAMappingError: if it is none of these; it says what to do.

    >>> from flax import linen, nnx
    >>> adapt(linen.Dense(3)).kind, adapt(Built.of(nnx.Linear, 2, 3)).kind
    ('Dense', 'Linear')
    """
    adapter, things = _adapter(thing)
    fields = () if adapter is None else dataclasses.fields(adapter)
    known = [field.name for field in fields][len(things) :]
    for name in options:
        if name not in known:
            raise UnknownNameError(
                f"{getattr(adapter, '__name__', type(thing).__name__)}: has no option "
                f"{name!r}. Nearest: {nearest(name, known)}."
            )
    if adapter is not None:
        return adapter(*things, **options)
    _refuse(thing)
    return as_mapping(thing)


def _adapter(thing: Any) -> tuple[type[Mapping] | None, tuple[Any, ...]]:
    """What adapts a thing, and what it is given; None for mappings and the rest."""
    if isinstance(thing, nn.Module):
        return Linen, (thing,)
    home = _of_module(thing) or _of_functions(thing)
    if home is None or isinstance(thing, Mapping):
        return None, (thing,)
    adapter = getattr(importlib.import_module(f"mapping.interop.{home[0]}"), home[1])
    return adapter, thing if home[1] == "Pair" else (thing,)


def _of_module(thing: Any) -> tuple[str, str] | None:
    """For a module that holds arrays, or what makes one."""
    for library, home in _LIBRARIES.items():
        if library not in sys.modules:
            continue  # what it makes cannot be here
        made = thing.function if isinstance(thing, Built) else thing
        made = made if isinstance(made, type) else type(made)
        if issubclass(made, sys.modules[library].Module):
            return home
    return None


_LIBRARIES = {
    "flax.nnx": ("from_nnx", "Nnx"),
    "equinox": ("from_equinox", "Equinox"),
}


def _of_functions(thing: Any) -> tuple[str, str] | None:
    """For two functions."""
    if not isinstance(thing, tuple) or len(thing) != 2 or not all(map(callable, thing)):
        return None
    haiku = sys.modules.get("haiku")
    if haiku and isinstance(thing, haiku.Transformed | haiku.TransformedWithState):
        return "from_haiku", "Haiku"
    if isinstance(thing, optax.GradientTransformation):
        return None
    return "from_pair", "Pair"


def _refuse(thing: Any) -> None:
    """Says what to do with what is no mapping, where something can be done."""
    name = type(thing).__name__
    bases = {base.__module__.split(".")[0] for base in type(thing).__mro__}
    if "torch" in bases:
        advice = (
            "Write it as a mapping and load its weights: "
            "interop.load_torch(module.state_dict(), mapping, variables)."
        )
    elif "keras" in bases or "tensorflow" in bases:
        advice = "Write it as a mapping, and copy its weights by path."
    elif isinstance(thing, optax.GradientTransformation):
        advice = "An optimizer is used as it is: train.fit(..., optimizer=...)."
    elif isinstance(thing, type) and issubclass(thing, nn.Module):
        name, advice = thing.__name__, f"Call the class: adapt({thing.__name__}(...))."
    else:
        return
    raise NotAMappingError(f"{name}: expected a module of JAX arrays. {advice}")
