"""Equinox modules as mappings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from mapping.built import Built
from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    describe,
    initialising,
    require_key,
    require_variables,
)
from mapping.errors import FieldError, ProtocolError, ShapeMismatchError
from mapping.foreign import lenient_promotion
from mapping.interop.calls import TRAIN_FLAGS, accepted, keyed, once_each
from mapping.interop.equinox_parts import (
    EquinoxInstance,
    Plan,
    plan_for,
    with_state,
)
from mapping.interop.trees import nest, strong


@dataclasses.dataclass(frozen=True)
class Equinox(Mapping):
    """Adapts an equinox module.

    Params are its floating arrays by attribute (`layers/0/weight`); state is its
    other arrays and its `eqx.nn.State`, by the attribute of each index. Its
    `inference` flags are set from `ctx.train`; a `key` argument of its call gets a key
    where the context has one. State moves in training only.

    Attributes:
        factory: what makes the module, called with `key=` if it takes one: a class, a
            function, or `Built.of(Class, *arguments, **options)`. Or a module that
            exists: its own values are what `init` returns, whatever the key.
        batch_axis: equinox modules are written for one example. Where this is a
            name, the module is mapped by `jax.vmap` over the first axis of its inputs,
            which `eqx.nn.BatchNorm` knows by that name; each example gets a key of its
            own. None gives the module its inputs as they are.

    Raises:
        FieldError: if the factory is no factory of modules.
        MissingKeyError: if the module wants a key and the context has none.
        MissingVariablesError: if variables are missing.
        ShapeMismatchError: if a batch is wanted and the inputs are none.
        ProtocolError: if a module with state does not return `(outputs, state)`, or
            its state is not the same for the whole batch.

    >>> layer = Equinox(Built.of(eqx.nn.Linear, 2, 3), batch_axis="batch")
    >>> x = jax.numpy.ones((5, 2))
    >>> v = layer.init(jax.random.key(0), x)
    >>> v.params["weight"].shape, layer(v.params, x).shape
    ((3, 2), (5, 3))
    """

    factory: Callable[..., Any]
    batch_axis: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.factory, eqx.Module):
            module = self.factory
            object.__setattr__(self, "factory", None)  # it cannot be hashed
            object.__setattr__(self, "factory", EquinoxInstance(module))
        if not callable(self.factory):
            raise FieldError(
                "Equinox.factory: expected an equinox module, or a class of modules, "
                f"got {self.factory!r}. Use Equinox(Built.of(Class, *arguments))."
            )

    @classmethod
    def of(
        cls,
        module: eqx.Module,
        state: eqx.nn.State | None = None,
        *,
        batch_axis: str | None = None,
    ) -> tuple[Equinox, Variables]:
        """Adapts a module that exists; returns the mapping and its variables.

        Give the state too where `eqx.nn.make_with_state` made both.
        """
        made: Any = module if state is None else EquinoxInstance(module, state)
        mapping = cls(made, batch_axis)
        return mapping, mapping.init(jax.random.key(0))

    @property
    def kind(self) -> str:
        """The module's class name."""
        return _plan(self).kind

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes the module with this key; the inputs do not matter to equinox."""
        require_key(key)
        plan, leaves = _plan(self), jax.tree.leaves(self._make(key))
        return Variables(
            nest((path, strong(leaves[i])) for i, path in plan.params.items()),
            nest((path, strong(leaves[i])) for i, path in plan.state.items()),
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the module in the context's mode."""
        require_variables(variables, ctx)
        plan, where = _plan(self), f"{ctx.where} ({self.kind})"

        def run(key: Any) -> tuple[Any, State]:
            module, state = plan.build(variables, where)
            module = eqx.nn.inference_mode(module, not ctx.train)
            call = _Call(module, plan.stateful, ctx.train, where)
            outputs, state = self._batched(call, key, state, inputs)
            if not ctx.train or not plan.stateful:
                return outputs, variables.state
            return outputs, plan.new_state(variables.state, state, where)

        try:
            return keyed(run, ctx, self.kind, inputs)
        except NameError as error:
            if self.batch_axis is not None or "axis" not in str(error):
                raise
            raise ProtocolError(
                f"{where}: normalises over a named batch axis, and there is none "
                f"({error}). Give the name: Equinox(..., batch_axis=...)."
            ) from error

    def _batched(
        self, call: _Call, key: Any, state: Any, inputs: tuple[Any, ...]
    ) -> Any:
        if self.batch_axis is None:
            return call(key, state, *inputs)
        extents = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
        if len(extents) != 1 or () in extents:
            raise ShapeMismatchError(
                f"{call.where}: expected inputs with one first axis, the batch, got "
                f"{describe(inputs)}. Give each input one entry for each example."
            )
        if key is not None:
            key = jax.random.split(key, *extents.pop())
        axes = (None if key is None else 0, None, *(0 for _ in inputs))
        mapped = jax.vmap(call, axes, (0, None), axis_name=self.batch_axis)
        try:
            return mapped(key, state, *inputs)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise ProtocolError(
                f"{call.where}: expected one new state for the whole batch, got one "
                "for each example. Reduce it with jax.lax.pmean(..., "
                f"{self.batch_axis!r})."
            ) from error

    def _make(self, key: jax.Array) -> tuple[Any, eqx.nn.State]:
        factory, arguments, options = self.factory, (), {}
        if isinstance(factory, EquinoxInstance):
            return factory()
        if isinstance(factory, Built):
            arguments, options = factory.arguments, dict(factory.options)
            factory = factory.function
        if "key" in accepted(factory):
            options["key"] = key
        with lenient_promotion():
            module, state = with_state(lambda: factory(*arguments, **options))
        if not isinstance(module, eqx.Module):
            raise FieldError(
                f"{initialising().where} (Equinox): expected a factory of equinox "
                f"modules, got one of {type(module).__name__}. Use Equinox(Class)."
            )
        return module, state


@dataclasses.dataclass(frozen=True)
class _Call:
    """A module's call, with and without state, as one function."""

    module: Any
    stateful: bool
    train: bool
    where: str

    def __call__(self, key: Any, state: Any, *inputs: Any) -> tuple[Any, Any]:
        arguments = accepted(self.module)
        options = {name: self.train for name in TRAIN_FLAGS if name in arguments}
        options |= {"key": key} if "key" in arguments else {}
        if not self.stateful:
            return self.module(*inputs, **options), None
        if "state" in arguments:
            options["state"] = state
        else:
            inputs = (*inputs, state)
        result = self.module(*inputs, **options)
        pair = isinstance(result, tuple) and len(result) == 2
        if not pair or not isinstance(result[1], eqx.nn.State):
            raise ProtocolError(
                f"{self.where}: a module with state should return (outputs, state), "
                f"got {type(result).__name__}. End its __call__ with `return y, state`."
            )
        return result


@once_each
def _plan(mapping: Equinox) -> Plan:
    return plan_for(mapping._make)
