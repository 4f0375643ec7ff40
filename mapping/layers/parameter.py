"""An array that is learned, as a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import Context, Mapping, State, Variables, initialising
from mapping.errors import FieldError
from mapping.foreign import require_arrays
from mapping.layers.guard import learned
from mapping.param import Param
from mapping.registry import Example, register


@register(
    "layer", "parameter", examples=lambda: Example(Parameter((2, 3), 0.5), (), False)
)
@dataclasses.dataclass(frozen=True)
class Parameter(Mapping):
    """A learned array, the same for every input: it takes none.

    As a part of a model it is called `run.token()`: a class token, a starting state,
    a temperature.

    Params: `value`, of `shape`.

    Attributes:
        shape: of the array.
        start: an initialiser, called with (key, shape, dtype), or a number.
        dtype: of the array.

    >>> token = Parameter((1, 4), start=0.5)
    >>> token(token.init(jax.random.key(0)).params).tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """

    shape: tuple[int, ...] = ()
    start: Callable[..., Any] | float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        param = self._param()
        if any(extent < 0 for extent in param.shape):
            raise FieldError(
                f"Parameter.shape: expected extents >= 0, got {self.shape!r}: there is "
                "no input to take them from. Name the extent itself."
            )

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes the array."""
        require_arrays(initialising(), self.kind, specs, count=0)
        return Variables({"value": self._param().make(key)})

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Returns the array."""
        require_arrays(ctx, self.kind, inputs, count=0)
        (value,) = learned(variables, ctx, self.kind, "value")
        return value, variables.state

    def _param(self) -> Param:
        return Param(self.shape, self.start, self.dtype)
