"""What a flax.nnx module is made of, and where everything in it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mapping.core import State, Variables, fold_name
from mapping.errors import FieldError
from mapping.interop.trees import Names, Valued, Values, find, nest

Path = tuple[Any, ...]
"""Where a variable is in a module, as nnx writes it: attributes, keys and numbers."""


class NnxInstance(Valued):
    """A module that exists, as a value: what an `Nnx` may start from."""

    def __init__(self, module: nnx.Module) -> None:
        self.kind = type(module).__name__
        self._graphdef, state = nnx.split(module)
        leaves = leaves_of(state)
        self._paths, self._arrays = tuple(leaves), Values(leaves.values())
        self.value = (self._graphdef, self._paths, self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self(),)

    def __call__(self) -> nnx.Module:
        """Makes the module again."""
        leaves = dict(zip(self._paths, self._arrays.restore(), strict=True))
        return nnx.merge(self._graphdef, nnx.traversals.unflatten_mapping(leaves))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where everything in a module is.

    Attributes:
        kind: the module's class name.
        graphdef: what it is, without its arrays.
        params: the paths of its params.
        state: those of its other variables, without random streams.
        caches: those of them that move in inference too.
        keys: the shapes of the keys of its streams, by path.
        counts: those of the counters.
    """

    kind: str
    graphdef: Any
    params: tuple[Path, ...]
    state: tuple[Path, ...]
    caches: frozenset[Path]
    keys: dict[Path, tuple[int, ...]]
    counts: dict[Path, tuple[int, ...]]

    def build(self, variables: Variables, key: Any, where: str) -> nnx.Module:
        """Makes the module with these arrays, and streams that start from the key."""
        leaves = {p: find(variables.params, names_of(p), where) for p in self.params}
        for path in self.state:
            leaves[path] = find(variables.state, names_of(path), where)
        for path, shape in self.counts.items():
            leaves[path] = jnp.zeros(shape, jnp.uint32)
        for path, shape in self.keys.items():
            leaves[path] = _stream(key, path, shape)
        return nnx.merge(self.graphdef, nnx.traversals.unflatten_mapping(leaves))

    def new_state(self, module: nnx.Module, old: State, train: bool) -> State:
        """Reads the state that the call left behind."""
        leaves = leaves_of(nnx.state(module))
        moved = [p for p in self.state if train or p in self.caches]
        kept = [p for p in self.state if p not in moved]
        return nest(
            [(names_of(p), leaves[p]) for p in moved]
            + [(names_of(p), find(old, names_of(p), self.kind)) for p in kept]
        )


def plan_for(make: Callable[[Any], nnx.Module]) -> Plan:
    """Makes the plan of what `make(key)` makes, computing nothing."""
    module = nnx.eval_shape(lambda: make(jax.random.key(0)))
    _refuse_bare_arrays(module)
    graphdef, everything = nnx.split(module)
    flat = dict(nnx.to_flat_state(everything))

    def of_type(kind: type) -> list[Path]:
        return [path for path, leaf in flat.items() if isinstance(leaf, kind)]

    params, streams = of_type(nnx.Param), of_type(nnx.RngState)
    return Plan(
        kind=type(module).__name__,
        graphdef=graphdef,
        params=tuple(params),
        state=tuple(p for p in flat if p not in params and p not in streams),
        caches=frozenset(of_type(nnx.Cache)),
        keys={path: _shape(flat[path]) for path in of_type(nnx.RngKey)},
        counts={path: _shape(flat[path]) for path in of_type(nnx.RngCount)},
    )


def _refuse_bare_arrays(module: nnx.Module) -> None:
    """While it is traced, nnx takes an array in an attribute for no data."""
    for path, part in nnx.iter_modules(module):
        for name, value in vars(part).items():
            if isinstance(value, jax.Array):
                raise FieldError(
                    f"{'/'.join(names_of((*path, name)))} ({type(module).__name__}): "
                    "expected a variable, got a bare array, which nnx does not trace. "
                    f"Write self.{name} = nnx.data(...), or give Nnx a module that "
                    "exists."
                )


def _stream(key: Any, path: Path, shape: tuple[int, ...]) -> Any:
    if key is None:
        return jnp.zeros(shape, jnp.float32)  # no key: drawing from it fails
    own = fold_name(key, "/".join(names_of(path[:-1])))
    return jax.random.split(own, shape) if shape else own


def leaves_of(state: Any) -> dict[Path, Any]:
    """The arrays of an nnx state by path."""
    return {path: _value(leaf) for path, leaf in nnx.to_flat_state(state)}


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _shape(leaf: Any) -> tuple[int, ...]:
    return _value(leaf).shape


def names_of(path: Path) -> Names:
    """The same path in a nested dict."""
    return tuple(map(str, path))
