"""Functions as mappings."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Context, Mapping, State, Variables, describe, fold_name
from mapping.errors import (
    FieldError,
    MissingVariablesError,
    NotAMappingError,
    ShapeMismatchError,
)
from mapping.param import Param
from mapping.registry import Example, register, spec


def _examples() -> tuple[Example, ...]:
    slope = Param((), 0.1)
    return (
        Example(Lift(jax.numpy.tanh), (spec(2, 3),)),
        Example(Lift.of(jax.nn.leaky_relu, negative_slope=slope), (spec(2, 3),)),
    )


@register("combinator", "lift", examples=_examples)
@dataclasses.dataclass(frozen=True, repr=False)
class Lift(Mapping):
    r"""Lifts a plain function to a mapping.

    $$ y = f(x_1, \dots, x_n; \theta) $$

    Attributes:
        function: any named pure JAX function.
        options: keyword arguments that are fixed, as sorted pairs.
        specs: keyword arguments that are learned, as sorted pairs of a name and a
            [`Param`][]. Give both by `Lift.of(f, a=1, scale=Param((-1,), 1.0))`.

    >>> Lift(jax.nn.relu)({}, jax.numpy.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    >>> Lift.of(jax.nn.gelu, approximate=False) == Lift.of(
    ...     jax.nn.gelu, approximate=False)
    True
    >>> def scaled(x, scale, power):
    ...     return x * scale**power
    >>> layer = Lift.of(scaled, scale=Param((-1,), 3.0), power=2)
    >>> params = layer.init(jax.random.key(0), jax.numpy.ones(2)).params
    >>> layer(params, jax.numpy.ones(2)).tolist()
    [9.0, 9.0]
    """

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...] = ()
    specs: tuple[tuple[str, Param], ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], **keywords: Any) -> Lift:
        """Lifts `function` with keywords fixed; a `Param` among them is learned."""
        pairs = sorted(keywords.items())
        options = tuple(p for p in pairs if not isinstance(p[1], Param))
        return cls(function, options, tuple(p for p in pairs if p not in options))

    def __post_init__(self) -> None:
        if isinstance(self.function, functools.partial):
            function = self.function
            if function.args:
                raise FieldError(
                    "Lift.function: expected a named function, got a partial with "
                    "positional arguments, which never equals itself once rebuilt. "
                    "Fix keywords only: Lift.of(function, name=value)."
                )
            whole = Lift.of(
                function.func, **{**function.keywords, **dict(self.options)}
            )
            for field in ("function", "options"):
                object.__setattr__(self, field, getattr(whole, field))
            object.__setattr__(self, "specs", (*whole.specs, *self.specs))

    def __repr__(self) -> str:
        keywords = (*self.options, *self.specs)
        if not keywords:
            return self.kind
        return f"{self.kind}({', '.join(f'{k}={v!r}' for k, v in keywords)})"

    def __reduce__(self) -> Any:
        """Copies and pickles a function by the name it is imported by."""
        home, name = getattr(self.function, "__module__", ""), self.kind
        found = getattr(sys.modules.get(home), name, None)
        function = (home, name) if found is self.function else self.function
        return _lift_again, (function, self.options, self.specs)

    @property
    def kind(self) -> str:
        """The function's own name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes each learned keyword for inputs like `specs`."""
        return Variables(
            {name: p.make(fold_name(key, name), *specs) for name, p in self.specs}
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies the function; the state passes through."""
        learned: dict[str, Any] = {
            name: variables.params.get(name) for name, _ in self.specs
        }
        missing = [name for name, value in learned.items() if value is None]
        if missing:
            raise MissingVariablesError(
                f"{ctx.where} ({self.kind}): expects params {sorted(learned)}, got "
                f"{sorted(variables.params)}. Pass the Variables that init returned."
            )
        for name, param in self.specs:
            wanted = param.extents(*inputs)
            if learned[name].shape != wanted:
                raise ShapeMismatchError(
                    f"{ctx.where} ({self.kind}): {name} expects the shape {wanted} for "
                    f"{describe(inputs)}, got {learned[name].shape}. Re-run init "
                    "with this input."
                )
        try:
            keywords = {**dict(self.options), **learned}
            return self.function(*inputs, **keywords), variables.state
        except Exception as error:
            error.add_note(f"in {ctx.where} ({self.kind}), given {describe(inputs)}")
            raise


def as_mapping(value: Any) -> Mapping:
    """Returns a mapping as it is and lifts a function.

    Raises:
        NotAMappingError: if `value` is neither.
    """
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type) and issubclass(value, Mapping):
        raise NotAMappingError(
            f"{value.__name__}: expected a mapping, got the class itself. Call it: "
            f"{value.__name__}(...)."
        )
    if callable(getattr(value, "apply", None)) and callable(
        getattr(value, "init", None)
    ):
        raise NotAMappingError(
            f"{type(value).__name__}: expected a mapping, got another framework's "
            "module. Lift it: mapping.layers.Linen(module) for flax.linen, else "
            "mapping.interop."
        )
    if isinstance(value, tuple) and value and isinstance(value[0], Mapping):
        raise NotAMappingError(
            f"expected a mapping, got a tuple that begins with a {value[0].kind}. "
            "Unpack it: mapping, variables = ... ."
        )
    if any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(value)):
        raise NotAMappingError(
            f"{type(value).__name__}: expected a mapping or a function, got a module "
            "that holds its arrays; they would be frozen. Lift an equinox or nnx one "
            "with mapping.interop, or write a mapping whose params are its arrays."
        )
    if isinstance(value, functools.partial) and not value.args:
        return Lift.of(value.func, **value.keywords)
    if callable(value):
        return Lift(value)
    raise NotAMappingError(
        f"expected a mapping or a function, got {type(value).__name__} {value!r}."
    )


def _lift_again(function: Any, options: Any, specs: Any) -> Lift:
    if isinstance(function, tuple):
        function = getattr(importlib.import_module(function[0]), function[1])
    return Lift(function, options, specs)
