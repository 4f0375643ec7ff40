"""optax's factories, described by value."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import optax

from mapping.errors import FieldError
from mapping.optimizers.optimizer import Optimizer, as_transform, tried
from mapping.paths import nearest
from mapping.registry import register


@register(
    "optimizer",
    "optax",
    examples=lambda: tried(Optimizer.of(optax.adamw, 1e-2, weight_decay=0.1)),
)
@dataclasses.dataclass(frozen=True, repr=False)
class Described(Optimizer):
    """`factory(*arguments, **options)`, which makes an optax transform.

    Made by `Optimizer.of`, and by `mapping.optimizers.adam(1e-3)` and the like.
    However arguments are given, by position or by name, equal calls are equal.

    Attributes:
        factory: a named function, such as `optax.adamw`.
        arguments: its positional arguments, where they have no names.
        options: its other arguments by name, as sorted pairs.

    Raises:
        FieldError: if the factory cannot be called so; it lists the nearest names.

    >>> Described(optax.adam, (1e-3,))
    adam(learning_rate=0.001)
    >>> Optimizer.of(optax.adam, 1e-3, betta=0.5)
    Traceback (most recent call last):
    ...
    mapping.errors.FieldError: adam: got an unexpected keyword argument 'betta'. Its
    arguments: learning_rate, b1, b2, ...
    """

    factory: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.factory, optax.GradientTransformation):
            raise FieldError(
                "Optimizer.of: expected a factory and its arguments, got what one has "
                "made. Write Optimizer.of(optax.adam, 1e-3), or use the transform as "
                "it is."
            )
        if not callable(self.factory):
            raise FieldError(
                f"Optimizer.of: expected a factory such as optax.adam, got "
                f"{self.factory!r}."
            )
        factory, arguments, options = self.factory, self.arguments, dict(self.options)
        if isinstance(factory, functools.partial):  # which equals itself alone
            arguments = (*factory.args, *arguments)
            options = {**factory.keywords, **options}
            object.__setattr__(self, "factory", factory := factory.func)
        arguments, options = _by_name(factory, arguments, options)
        object.__setattr__(self, "arguments", arguments)
        object.__setattr__(self, "options", tuple(sorted(options.items())))

    def __repr__(self) -> str:
        shown = [repr(argument) for argument in self.arguments]
        shown += [f"{name}={value!r}" for name, value in self.options]
        return f"{self.kind}({', '.join(shown)})"

    @property
    def kind(self) -> str:
        """The factory's own name."""
        return getattr(self.factory, "__name__", type(self.factory).__name__)

    def transform(self) -> optax.GradientTransformation:
        """Calls the factory."""
        options = {name: _made(value) for name, value in self.options}
        made = self.factory(*map(_made, self.arguments), **options)
        return as_transform(made, f"what {self.kind} makes")


def _made(value: Any) -> Any:
    """An optimizer among the arguments, as the factory wants it."""
    return value.transform() if isinstance(value, Optimizer) else value


def _by_name(
    factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments by name, as far as they have names."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return arguments, options
    name = getattr(factory, "__name__", repr(factory))
    try:
        bound = signature.bind(*arguments, **options)
    except TypeError as error:
        known = signature.parameters
        odd = [option for option in options if option not in known]
        hint = f" Nearest: {nearest(odd[0], known)}." if odd else ""
        raise FieldError(
            f"{name}: {error}. Its arguments: {', '.join(known)}.{hint}"
        ) from error
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
        return arguments, options
    named = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return (), named
