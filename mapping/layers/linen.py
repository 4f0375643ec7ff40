"""The one adapter through which flax.linen's layers become mappings."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from typing import Any, ClassVar

import flax.errors
import flax.linen as nn
import jax

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
from mapping.errors import (
    FieldError,
    MissingKeyError,
    MissingVariablesError,
    ShapeMismatchError,
)
from mapping.foreign import (
    first_line,
    lenient_promotion,
    named_errors,
    require_arrays,
)
from mapping.nesting import as_spec
from mapping.registry import Example, register, spec

_TRAIN_FLAGS = ("train", "training", "is_training")
_INFERENCE_FLAGS = ("deterministic", "use_running_average", "inference")
_MISSING = (
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeVariableNotFoundError,
)


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
        require_key(key)
        ctx = initialising()
        with self._guard(ctx, specs), lenient_promotion():
            module = self.module()
            flags: dict[str, Any] = _mode(module, train=False)
            collections = dict(module.lazy_init(key, *as_spec(specs), **flags))
        return Variables(collections.pop("params", {}), self._to_state(collections))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the module; its state moves only in training."""
        require_variables(variables, ctx)
        collections = self._from_state(variables.state)
        with self._guard(ctx, inputs), lenient_promotion():
            self._check_features(variables, inputs, ctx)
            module = self.module()
            run = functools.partial(
                module.apply,
                {"params": variables.params, **collections},
                *inputs,
                rngs=None if ctx.key is None else ctx.rng(),
                mutable=list(collections) if ctx.train else False,
                **_mode(module, ctx.train),
            )
            with self._named(variables, inputs, ctx):
                result = run()
        if not ctx.train:
            return result, variables.state
        outputs, changed = result
        state = {**variables.state, **self._to_state(dict(changed))}
        self._check_state(variables, state, ctx)
        return outputs, state

    def _guard(
        self, ctx: Context, inputs: tuple[Any, ...]
    ) -> contextlib.AbstractContextManager[None]:
        return named_errors(ctx, self.kind, inputs)

    @contextlib.contextmanager
    def _named(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> Any:
        """Says in our words what linen says in its own."""
        try:
            with nn.override_named_call(type(self) is Linen):
                yield
        except _MISSING as error:
            raise self._missing(variables, ctx) from error
        except flax.errors.InvalidRngError as error:
            raise MissingKeyError(
                f"{ctx.where} ({self.kind}): needs a random key, got none. Pass "
                "ctx=Context(key=jax.random.key(0), train=...)."
            ) from error
        except flax.errors.ScopeParamShapeError as error:
            raise ShapeMismatchError(
                f"{ctx.where} ({self.kind}): params do not fit the input "
                f"{describe(inputs)}: {first_line(error)}. Re-run init with this "
                "input."
            ) from error

    def _missing(self, variables: Variables, ctx: Context) -> MissingVariablesError:
        return MissingVariablesError(
            f"{ctx.where} ({self.kind}): expects variables made by its init, got "
            f"params {sorted(variables.params)} and state {sorted(variables.state)}. "
            "Pass the Variables that init returned; to mapping(params, x), "
            "state=variables.state."
        )

    def _check_state(self, variables: Variables, state: State, ctx: Context) -> None:
        """Refuses a state that linen had to complete: part of it was missing."""
        if state.keys() != variables.state.keys():
            raise self._missing(variables, ctx)

    def _check_features(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> None:
        require_arrays(ctx, self.kind, inputs, count=1)
        wanted, shape = self.features_in(variables), inputs[0].shape
        if wanted is not None and (not shape or shape[-1] != wanted):
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


@register(
    "layer",
    "linen",
    examples=lambda: Example(Linen(nn.Dense(3)), (spec(4, 2),), value=False),
)
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

    def __post_init__(self) -> None:
        if not isinstance(self.wrapped, nn.Module):
            raise FieldError(
                f"Linen.wrapped: expected a flax.linen module, got {self.wrapped!r}. "
                "Pass an instance, such as Linen(nn.Dense(8))."
            )

    def module(self) -> nn.Module:
        """Returns the wrapped module."""
        return self.wrapped

    @property
    def kind(self) -> str:
        """The wrapped module's class name."""
        return type(self.wrapped).__name__

    def _guard(
        self, ctx: Context, inputs: tuple[Any, ...]
    ) -> contextlib.AbstractContextManager[None]:
        """The module is the user's own: its errors are left as they are."""
        return contextlib.nullcontext()

    def _check_features(
        self, variables: Variables, inputs: tuple[Any, ...], ctx: Context
    ) -> None:
        """A module may take any inputs."""

    def _check_state(self, variables: Variables, state: State, ctx: Context) -> None:
        """A module may make state as it goes."""


def _mode(module: nn.Module, train: bool) -> dict[str, bool]:
    """Sets whichever flag the module's call uses to tell training from inference."""
    accepted = inspect.signature(type(module).__call__).parameters
    flags = {name: train for name in _TRAIN_FLAGS if name in accepted}
    return flags | {name: not train for name in _INFERENCE_FLAGS if name in accepted}
