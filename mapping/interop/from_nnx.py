"""flax.nnx modules as mappings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from mapping.built import Built
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    initialising,
    require_key,
    require_variables,
)
from mapping.errors import FieldError
from mapping.foreign import lenient_promotion
from mapping.interop.calls import accepted, keyed, mode, once_each
from mapping.interop.nnx_parts import (
    NnxInstance,
    Plan,
    leaves_of,
    names_of,
    plan_for,
)
from mapping.interop.trees import nest


@dataclasses.dataclass(frozen=True)
class Nnx(Mapping):
    """Adapts a flax.nnx module.

    Params are its `nnx.Param`s by attribute (`layers/0/kernel`), state all its other
    variables except random streams. `ctx.train` puts the module in training or
    inference mode, as `module.train()` and `module.eval()` do, and sets a flag of its
    call (`train`, `deterministic`, ...) if there is one. Each of its random streams
    starts from a key of its own, derived from the context's; a `rngs` argument of its
    call gets `nnx.Rngs(key)`. State moves in training; an `nnx.Cache` moves always.
    What the call writes to params, or to variables made on the way, is dropped.

    Attributes:
        factory: what makes the module, called with `rngs=nnx.Rngs(key)` if it takes
            them: a class, a function, or `Built.of(Class, *arguments, **options)`. Or
            a module that exists: its own values are what `init` returns, whatever the
            key.

    Raises:
        FieldError: if the factory is no factory of modules.
        MissingKeyError: if a stream is drawn from and the context has no key.
        MissingVariablesError: if variables are missing.

    >>> layer = Nnx(Built.of(nnx.Linear, 2, 3))
    >>> v = layer.init(jax.random.key(0), jax.numpy.ones((1, 2)))
    >>> v.params["kernel"].shape, layer(v.params, jax.numpy.ones((5, 2))).shape
    ((2, 3), (5, 3))
    >>> layer == Nnx(Built.of(nnx.Linear, 2, 3))
    True
    """

    factory: Callable[..., nnx.Module] | nnx.Module

    def __post_init__(self) -> None:
        if isinstance(self.factory, nnx.Module):
            object.__setattr__(self, "factory", NnxInstance(self.factory))
        if not callable(self.factory):
            raise FieldError(
                "Nnx.factory: expected a flax.nnx module, or a class of modules, got "
                f"{self.factory!r}. Use Nnx(Built.of(Class, *arguments))."
            )

    @classmethod
    def of(cls, module: nnx.Module) -> tuple[Nnx, Variables]:
        """Adapts a module that exists; returns the mapping and its variables."""
        mapping = cls(module)
        return mapping, mapping.init(jax.random.key(0))

    @property
    def kind(self) -> str:
        """The module's class name."""
        return _plan(self).kind

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes the module with this key; the inputs do not matter to nnx."""
        require_key(key)
        leaves = leaves_of(nnx.state(self._make(key)))
        plan = _plan(self)
        return Variables(
            nest((names_of(path), leaves[path]) for path in plan.params),
            nest((names_of(path), leaves[path]) for path in plan.state),
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the module in the context's mode."""
        require_variables(variables, ctx)
        plan, where = _plan(self), f"{ctx.where} ({self.kind})"

        def run(key: Any) -> tuple[Any, State]:
            module = plan.build(variables, key, where)
            module.train() if ctx.train else module.eval()
            arguments = accepted(module)
            options: dict[str, Any] = mode(arguments, ctx.train)
            if "rngs" in arguments:
                options["rngs"] = None if key is None else nnx.Rngs(key)
            outputs = module(*inputs, **options)
            return outputs, plan.new_state(module, variables.state, ctx.train)

        return keyed(run, ctx, self.kind, inputs)

    def _make(self, key: jax.Array) -> nnx.Module:
        factory, arguments, options = self.factory, (), {}
        if isinstance(factory, Built):
            arguments, options = factory.arguments, dict(factory.options)
            factory = factory.function
        if "rngs" in accepted(factory):
            options["rngs"] = nnx.Rngs(key)
        with lenient_promotion():
            module = factory(*arguments, **options)
        if not isinstance(module, nnx.Module):
            raise FieldError(
                f"{initialising().where} (Nnx): expected a factory of flax.nnx "
                f"modules, got one of {type(module).__name__}. Use Nnx(Class)."
            )
        return module


@once_each
def _plan(mapping: Nnx) -> Plan:
    return plan_for(mapping._make)
