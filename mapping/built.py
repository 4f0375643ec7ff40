"""What a function made, described by value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from mapping.fields import check_fields
from mapping.registry import register


@register("value", "built")
@dataclasses.dataclass(frozen=True)
class Built:
    """Describes `function(*arguments, **options)` so that equal ones are equal.

    What a factory returns (an initialiser, a schedule, an optax transform) is a
    closure, which equals itself only, cannot be saved, and is traced again when it
    is rebuilt. This is the call that makes it: it compares by value, has a
    configuration, and is called like what it makes.

    Attributes:
        function: the factory, a named function.
        arguments: its positional arguments.
        options: its keyword arguments, as sorted pairs; give them by `Built.of`.

    >>> import jax
    >>> init = Built.of(jax.nn.initializers.normal, 0.02)
    >>> init == Built.of(jax.nn.initializers.normal, 0.02)
    True
    >>> init(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], *arguments: Any, **options: Any) -> Built:
        """Describes `function(*arguments, **options)`."""
        return cls(function, arguments, tuple(sorted(options.items())))

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls what the factory makes."""
        return self.make()(*args, **kwargs)

    def make(self) -> Any:
        """Returns what the factory makes, the same object for equal descriptions."""
        return _make(self)


@functools.lru_cache(maxsize=1024)
def _make(built: Built) -> Any:
    return built.function(*built.arguments, **dict(built.options))
