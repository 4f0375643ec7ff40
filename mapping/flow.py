"""Another way through a model's parts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping as Dict
from typing import Any

from mapping.errors import FieldError, UnknownNameError
from mapping.model import Model, Run
from mapping.paths import nearest
from mapping.registry import Example, register, spec


def _example() -> Example:
    from mapping.models.autoencoder import Autoencoder

    coder = Autoencoder.dense((4,), 2, features=(3,))
    return Example(Flow(coder, "encode"), (spec(2, 4),), batched=False)


@register("model", "flow", examples=_example)
@dataclasses.dataclass(frozen=True)
class Flow(Model):
    r"""A model's parts, run by another of its methods than `forward`.

    $$ f_\theta, g_\theta: \text{one } \theta $$

    It takes the variables of the whole model and uses what it needs: the encoder of
    an autoencoder, one tower of two. Initialised by itself it has only those.

    Params: the model's own.

    Attributes:
        model: a [`Model`][].
        method: name of its method `(self, run, *inputs)`, with `run` so called.

    Raises:
        FieldError: if the model is none.
        UnknownNameError: if it has no such method.

    >>> import jax
    >>> from mapping.models import Autoencoder
    >>> coder = Autoencoder.dense((8, 8), latent=3)
    >>> x = jax.numpy.ones((5, 8, 8))
    >>> params = coder.init(jax.random.key(0), x).params
    >>> z = Flow(coder, "encode")(params, x)
    >>> z.shape, Flow(coder, "decode")(params, z).shape
    ((5, 3), (5, 8, 8))
    """

    model: Model
    method: str

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            raise FieldError(
                f"Flow.model: expected a Model, got {self.model!r}. Other mappings "
                "have one way through: use them as they are."
            )
        kind = type(self.model)
        known = [name for name in dir(kind) if _is_flow(getattr(kind, name))]
        if self.method not in known:
            raise UnknownNameError(
                f"Flow.method: {self.model.kind} has no method {self.method!r}. "
                f"Nearest: {nearest(str(self.method), known)}."
            )

    def parts(self) -> Dict[str, Any]:
        """The model's own."""
        return self.model.parts()

    def forward(self, run: Run, *inputs: Any) -> Any:
        """The model's method."""
        return getattr(self.model, self.method)(run, *inputs)


def _is_flow(method: Any) -> bool:
    if not inspect.isfunction(method):
        return False
    return [*inspect.signature(method).parameters][1:2] == ["run"]
