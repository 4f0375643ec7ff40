"""Mappings as JSON, and back.

>>> from mapping.layers import Dense
>>> from_config(to_config(Dense(8))) == Dense(8)
True
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from mapping.errors import ConfigError, MappingError, UnknownNameError
from mapping.paths import nearest
from mapping.registry import KINDS, build, check_arguments, entry_of, lookup

Json: TypeAlias = Any
"""None, booleans, numbers, strings, lists and dicts of them."""

_PUBLIC = (
    "jax.nn",
    "jax.numpy",
    "jax.lax",
    "jax.nn.initializers",
    "jax.scipy.special",
    "jax.scipy.stats",
    "jax.checkpoint_policies",
    "flax.linen",
    "optax",
    "optax.contrib",
    "optax.losses",
)
"""Where functions may come from without being registered: a configuration that a
stranger sends must not be able to name any other."""

_REACHES_OUT = re.compile("load|save|file|dlpack|buffer|text|string|print|callback")
"""Names of functions there that read or write files, memory or settings."""


def to_config(value: Any) -> Json:
    """Describes a mapping as JSON.

    Every registered thing becomes `{"is": "kind/name", field: ...}`; tuples become
    lists; functions of JAX, flax and optax are written by their public name.

    Args:
        value: a mapping, or anything that a field of one may hold.

    Raises:
        ConfigError: if something in it is not registered; it names the field.

    >>> import jax
    >>> from mapping.layers import Dense
    >>> to_config(Dense(8) >> jax.nn.relu)["steps"][1][1]
    {'is': 'combinator/lift', 'function': {'is': 'function', 'name': 'jax.nn.relu'}}
    """
    return _write(value, "")


def from_config(config: Json) -> Any:
    """Rebuilds what [`to_config`][] described; nothing else is imported or run.

    Raises:
        UnknownNameError: if a name or a field is unknown; it lists the nearest.
        ConfigError: if the configuration is malformed; it names the place.
        RegistrationError: if a field is missing.

    >>> from_config({"is": "layer/dense", "feature": 8})
    Traceback (most recent call last):
    ...
    mapping.errors.UnknownNameError: layer/dense: has no field 'feature'. Nearest: ...
    """
    return _read(config, "")


def _write(value: Any, where: str) -> Json:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        finite = math.isfinite(value)
        return float(value) if finite else {"is": "float", "value": str(value)}
    if isinstance(value, complex):
        return {"is": "complex", "value": [value.real, value.imag]}
    if type(value) is tuple:
        return [_write(each, f"{where}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, frozenset):
        listed = sorted((_write(each, where) for each in value), key=repr)
        return {"is": "set", "values": listed}
    if isinstance(value, np.dtype):
        return {"is": "dtype", "name": value.name}
    if isinstance(value, functools.partial):
        return _write_partial(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _write_fields(value, where)
    if callable(value):
        return {"is": "function", "name": _function_name(value, where)}
    raise ConfigError(
        f"{where or type(value).__name__}: cannot be written as JSON, got "
        f"{type(value).__name__}. Fields hold numbers, strings, tuples, dtypes, named "
        "functions and registered values."
    )


def _write_fields(value: Any, where: str) -> Json:
    kind = type(value)
    entry = entry_of(kind)
    if entry is None:
        raise ConfigError(
            f"{where or kind.__name__}: {kind.__name__} is not registered. Put "
            f'@mapping.register("layer", "{kind.__name__.lower()}") above the class.'
        )
    described: dict[str, Json] = {"is": entry.label}
    short = value.to_fields() if hasattr(value, "to_fields") else {}
    for field in dataclasses.fields(value):
        own = short.get(field.name, getattr(value, field.name))
        if field.init and not _is_default(field, own):
            place = f"{where or kind.__name__}.{field.name}"
            described[field.name] = _write(own, place)
    return described


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """None and () say nothing; other defaults are written, lest they change."""
    return value is field.default and (value is None or value == ())


def _write_partial(value: functools.partial[Any], where: str) -> Json:
    return {
        "is": "partial",
        "function": _write(value.func, f"{where}.func"),
        "arguments": _write(tuple(value.args), f"{where}.args"),
        "keywords": {
            key: _write(each, f"{where}.{key}") for key, each in value.keywords.items()
        },
    }


def _function_name(function: Callable[..., Any], where: str) -> str:
    entry = entry_of(function)
    if entry is not None:
        return entry.label
    name = getattr(function, "__name__", "")
    for home in _PUBLIC:
        if name and getattr(_module(home), name, None) is function:
            return f"{home}.{name}"
    raise ConfigError(
        f"{where}: {name or function!r} is neither registered nor a public function of "
        f'JAX, flax or optax. Put @mapping.register("function", "{name}") above it; '
        "describe what a factory made with mapping.Built.of(factory, ...)."
    )


def _read(config: Json, where: str) -> Any:
    if config is None or isinstance(config, bool | int | float | str):
        return config
    if isinstance(config, list | tuple):
        return tuple(_read(each, f"{where}[{i}]") for i, each in enumerate(config))
    if not isinstance(config, dict) or not isinstance(config.get("is"), str):
        raise ConfigError(
            f"{where or '(root)'}: expected a value, a list or "
            f'{{"is": "kind/name", ...}}, got {config!r:.80}. Name what it is.'
        )
    special = _SPECIAL.get(config["is"])
    if special is not None:
        try:
            return special(config, where)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{where or '(root)'}: a {config['is']} is described otherwise, got "
                f"{config!r:.80} ({error}). Write it with to_config."
            ) from error
    kind, _, name = config["is"].partition("/")
    if kind not in KINDS or not name:
        known = [*_SPECIAL, *(f"{kind}/..." for kind in KINDS)]
        raise UnknownNameError(
            f"{where or '(root)'}: nothing is called {config['is']!r}. Nearest: "
            f"{nearest(config['is'], known)}."
        )
    fields = {
        key: _read(value, f"{where}/{key}".lstrip("/"))
        for key, value in config.items()
        if key != "is"
    }
    return _rebuild(kind, name, fields, where)


def _rebuild(kind: str, name: str, fields: dict[str, Any], where: str) -> Any:
    entry = lookup(kind, name)
    make = getattr(entry.target, "from_fields", None)
    if make is not None:
        known = [field.name for field in dataclasses.fields(entry.target)]
        check_arguments(entry.label, make, known, fields)
    try:
        return build(kind, name, **fields) if make is None else make(**fields)
    except MappingError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where or '(root)'}: {entry.label} cannot be built from {fields!r:.200}: "
            f"{error}. Write it with to_config."
        ) from error


def _read_function(config: Json, where: str) -> Any:
    name = str(config.get("name", ""))
    if name.startswith("function/"):
        return lookup("function", name.removeprefix("function/")).target
    home, _, own = name.rpartition(".")
    if home not in _PUBLIC or own.startswith("_"):
        raise UnknownNameError(
            f"{where or '(root)'}: {name!r} is neither registered nor in "
            f"{', '.join(_PUBLIC)}. Register it under the kind 'function'."
        )
    return _public(home, own, where)


def _public(home: str, name: str, where: str) -> Any:
    owner = _module(home)
    if not hasattr(owner, name):
        raise UnknownNameError(
            f"{where or '(root)'}: {home} has no {name!r}. Nearest: "
            f"{nearest(name, dir(owner))}."
        )
    function = getattr(owner, name)
    if not callable(function) or _REACHES_OUT.search(name):
        raise UnknownNameError(
            f"{where or '(root)'}: {home}.{name} is no function of arrays alone. "
            "Register what you mean under the kind 'function'."
        )
    return function


def _module(home: str) -> Any:
    """`jax.checkpoint_policies` is no module, only an attribute."""
    parent, _, name = home.rpartition(".")
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(parent), name)


def _read_partial(config: Json, where: str) -> Any:
    keywords = {k: _read(v, f"{where}.{k}") for k, v in config["keywords"].items()}
    function = _read(config["function"], where)
    return functools.partial(function, *_read(config["arguments"], where), **keywords)


_SPECIAL: dict[str, Callable[[Json, str], Any]] = {
    "function": _read_function,
    "partial": _read_partial,
    "set": lambda config, where: frozenset(_read(config["values"], where)),
    "dtype": lambda config, where: jnp.dtype(config["name"]),
    "float": lambda config, where: float(config["value"]),
    "complex": lambda config, where: complex(*config["value"]),
}
