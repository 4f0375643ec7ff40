"""The one adapter through which flax.linen's layers become mappings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, ClassVar

import flax.errors
import flax.linen as nn
import jax

from mapping.core import Context, Mapping, State, Variables, describe
from mapping.errors import MissingKeyError, MissingVariablesError, ShapeMismatchError
from mapping.foreign import lenient_promotion

_TRAIN_FLAGS = ("train", "training", "is_training")
_INFERENCE_FLAGS = ("deterministic", "use_running_average", "inference")
_MISSING = (flax.errors.ScopeCollectionNotFound, flax.errors.ScopeParamNotFoundError)


@dataclasses.dataclass(frozen=True)
class LinenLayer(Mapping):
    """A mapping whose mathematics is a flax.linen module.

    A subclass says which module in `module` and, where its params fix the number
    of input features, how many in `features_in`. The adapter gives it what every
    mapping has: one return arity, the author's names, a key per path and one flag
    for training.
    """

    collection: ClassVar[str | None] = None
    """The linen collection that is this layer's state; None keeps all, by name."""

    def module(self) -> nn.Module:
        """Returns the linen module that does the work."""
        raise TypeError(
            f"{type(self).__name__}: expected a method `module(self)` that returns "
            "a flax.linen.Module, found none. Define it."
        )

    def features_in(self, variables: Variables) -> int | None:
        """Returns how many features the last axis of the input must have, if fixed."""
        return None

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the module's collections; batch statistics become state."""
        module = self.module()
        flags: dict[str, Any] = _mode(module, train=False)

        specs = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), specs)
        try:
            with lenient_promotion():
                collections = dict(module.lazy_init(key, *specs, **flags))
        except (TypeError, ValueError, IndexError) as error:
            raise ShapeMismatchError(
                f"({self.kind}): cannot be initialised for {describe(specs)}: "
                f"{_first_line(error)}. Give init an input this layer accepts."
            ) from error
        return Variables(collections.pop("params", {}), self._to_state(collections))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the module; its state moves only in training."""
        self._check_features(variables, inputs, ctx)
        module = self.module()
        collections = self._from_state(variables.state)
        run = functools.partial(
            module.apply,
            {"params": variables.params, **collections},
            *inputs,
            rngs=None if ctx.key is None else ctx.rng(),
            mutable=list(collections) if ctx.train else False,
            **_mode(module, ctx.train),
        )
        try:
            with nn.override_named_call(type(self) is Linen), lenient_promotion():
                result = run()
        except _MISSING as error:
            raise MissingVariablesError(
                f"{ctx.where} ({self.kind}): expects variables made by its init, got "
                f"params {sorted(variables.params)} and state "
                f"{sorted(variables.state)}. Pass the Variables that init returned."
            ) from error
        except flax.errors.InvalidRngError as error:
            raise MissingKeyError(
                f"{ctx.where} ({self.kind}): needs a random key, got none. Pass "
                "ctx=Context(key=jax.random.key(0), train=...)."
            ) from error
        except flax.errors.ScopeParamShapeError as error:
            raise ShapeMismatchError(
                f"{ctx.where} ({self.kind}): params do not fit the input "
                f"{describe(inputs)}: {_first_line(error)}. Re-run init with this "
                "input."
            ) from error
        if not ctx.train:
            return result, variables.state
        outputs, changed = result
        return outputs, {**variables.state, **self._to_state(dict(changed))}

    def _check_features(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> None:
        wanted = self.features_in(variables)
        if wanted is None or not hasattr(inputs[0], "shape"):
            return
        shape = inputs[0].shape
        if not shape or shape[-1] != wanted:
            raise ShapeMismatchError(
                f"{ctx.where} ({self.kind}): params expect {wanted} features in (the "
                f"last axis), got {describe(inputs)}. Re-run init with this input, or "
                f"put Dense({wanted}) before it."
            )

    def _to_state(self, collections: dict[str, Any]) -> State:
        if self.collection is None:
            return collections
        return collections.get(self.collection, {})

    def _from_state(self, state: State) -> dict[str, Any]:
        if self.collection is None:
            return dict(state)
        return {self.collection: state} if state else {}


@dataclasses.dataclass(frozen=True)
class Linen(LinenLayer):
    """Lifts any flax.linen module to a mapping.

    The module's flag for training (`train`, `deterministic`,
    `use_running_average`, ...) is set from the context. Params keep linen's
    names; each other collection becomes a branch of the state.

    Attributes:
        wrapped: the linen module, unbound.

    >>> layer = Linen(nn.Dense(3))
    >>> v = layer.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 2), "float32"))
    >>> layer(v.params, jax.numpy.ones((5, 2))).shape
    (5, 3)
    """

    wrapped: nn.Module

    def module(self) -> nn.Module:
        """Returns the wrapped module."""
        return self.wrapped

    @property
    def kind(self) -> str:
        """The wrapped module's class name."""
        return type(self.wrapped).__name__


def _mode(module: nn.Module, train: bool) -> dict[str, bool]:
    """Sets whichever flag the module's call uses to tell training from inference."""
    accepted = inspect.signature(type(module).__call__).parameters
    flags = {name: train for name in _TRAIN_FLAGS if name in accepted}
    return flags | {name: not train for name in _INFERENCE_FLAGS if name in accepted}


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split(" (https://")[0].rstrip(".")
