"""What an optimizer is: a mapping from gradients to updates, with moments as state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mapping.built import Built
from mapping.core import Context, Mapping, State, Variables, describe, leaf_paths
from mapping.errors import FieldError, ShapeMismatchError
from mapping.foreign import lenient_promotion
from mapping.nesting import check_result, check_variables
from mapping.optimizers.moments import as_moments, as_state
from mapping.registry import Example, register, spec


@dataclasses.dataclass(frozen=True)
class Optimizer(Mapping):
    r"""Describes an optimizer by value.

    $$ u, m' = f(g, \theta, m) \qquad \theta' = \theta + u $$

    As a mapping it takes gradients and params and returns updates; its state is the
    moments, by path. `a >> b` hands the updates of `a` to `b` as gradients. Equal
    ones are equal and have a configuration, which an optax transform has not; both
    train.

    Subclass it and define `transform` for one of your own; or use any mapping with
    `init(key, params) -> Variables` and
    `apply(variables, gradients, params, ctx) -> (updates, new state)`, or an optax
    transform.

    Raises:
        ShapeMismatchError: if the gradients are not those of the params.

    >>> sgd = Optimizer.of(optax.sgd, 0.5)
    >>> params, gradients = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, 2.0])}
    >>> v = sgd.init(jax.random.key(0), params)
    >>> updates, state = sgd.apply(v, gradients, params, ctx=Context(train=True))
    >>> updates["w"].tolist()
    [-0.5, -1.0]
    """

    @staticmethod
    def of(factory: Callable[..., Any], *arguments: Any, **options: Any) -> Optimizer:
        """Describes `factory(*arguments, **options)`, which makes an optax transform.

        Args:
            factory: a named function, such as `optax.adamw`.
            *arguments: its arguments; a schedule as
                `Built.of(optax.cosine_decay_schedule, 1e-3, 1000)`.
            **options: its keyword arguments.
        """
        from mapping.optimizers.described import Described

        return Described(factory, arguments, tuple(sorted(options.items())))

    def transform(self) -> optax.GradientTransformation:
        """Returns the optax transform."""
        raise TypeError(
            f"{self.kind}: expected a method `transform(self)` that returns an optax "
            "transform, found none. Define it."
        )

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes the moments for params (the last of `specs`)."""
        params = jax.tree.map(_filled, specs[-1])
        with lenient_promotion():
            return Variables({}, as_state(self.transform().init(params)))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Takes (gradients, params); returns the updates and the new moments."""
        gradients, params = inputs
        _check_same(gradients, params, ctx)
        transform = self.transform()
        with lenient_promotion():
            structure = jax.eval_shape(transform.init, params)
            moments = as_moments(structure, variables.state, ctx)
            updates, moments = transform.update(gradients, moments, params)
        return updates, as_state(moments)

    def __rshift__(self, other: Any) -> Optimizer:
        """`a >> b`: the updates of `a` are what `b` is given for gradients."""
        return Chain((*_links(self), *_links(other)))

    def __rrshift__(self, other: Any) -> Optimizer:
        """`a >> b` where `a` is an optax transform."""
        return Chain((*_links(other), *_links(self)))


def tried(optimizer: Optimizer) -> Example:
    """The optimizer as the conformance suite tries it: its moments always move."""
    params = {"dense": {"kernel": spec(3, 2), "bias": spec(2)}}
    return Example(optimizer, (params, params), batched=False, caches=True)


def _chain_example() -> Example:
    sgd = Optimizer.of(optax.sgd, 0.1, momentum=0.9)
    return tried(Chain((Optimizer.of(optax.clip, 1.0), sgd)))


@register("optimizer", "chain", examples=_chain_example)
@dataclasses.dataclass(frozen=True)
class Chain(Optimizer):
    """Optimizers one after the other: `clip >> adamw`.

    Attributes:
        links: what [`as_transform`][] takes, in order.

    >>> clip = Optimizer.of(optax.clip_by_global_norm, 1.0)
    >>> len((clip >> Optimizer.of(optax.sgd, 0.1)).links)
    2
    """

    links: tuple[Any, ...]

    def __post_init__(self) -> None:
        for number, link in enumerate(self.links):
            as_transform(link, f"Chain.links[{number}]")

    def transform(self) -> optax.GradientTransformation:
        """`optax.chain`."""
        return optax.chain(*(as_transform(link) for link in self.links))


def as_transform(
    value: Any, where: str = "optimizer", ctx: Context | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the optax transform that a value stands for.

    Args:
        value: an optax transform; an [`Optimizer`][]; `Built.of(optax.adam, 1e-3)`; a
            dict of these by path (see `partition`); or a mapping that is one.
        where: what the value is called, for messages.
        ctx: what a mapping is told beside gradients and params.

    Raises:
        FieldError: if it stands for none.

    >>> params = {"w": jnp.ones(2)}
    >>> transform = as_transform({"*": Optimizer.of(optax.sgd, 0.5)})
    >>> transform.update(params, transform.init(params), params)[0]["w"].tolist()
    [-0.5, -0.5]
    """
    if isinstance(value, optax.GradientTransformation):
        return optax.with_extra_args_support(value)
    if isinstance(value, optax.MultiSteps):
        return optax.with_extra_args_support(value.gradient_transformation())
    if isinstance(value, Optimizer):
        return optax.with_extra_args_support(value.transform())
    if isinstance(value, Built):
        return as_transform(value.make(), where, ctx)
    if isinstance(value, dict):
        from mapping.optimizers.partition import partition

        return as_transform(partition(value), where, ctx)
    if isinstance(value, Mapping):
        return _adapted(value, ctx or Context(train=True))
    raise FieldError(
        f"{where}: expected an optax transform, got {value!r}. Call it, such as "
        "optax.adam(1e-3); or describe it: mapping.optimizers.adam(1e-3)."
    )


def _adapted(mapping: Mapping, ctx: Context) -> optax.GradientTransformationExtraArgs:
    """A mapping as optax has it; what it carries along are its variables."""

    def init(params: Any) -> Any:
        key = jax.random.key(0) if ctx.key is None else ctx.key
        return check_variables(mapping, mapping.init(key, params))

    def update(
        updates: Any, state: Any, params: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        result = mapping.apply(state, updates, params, ctx=ctx)
        updates, moments = check_result(mapping, result, ctx)
        return updates, Variables(state.params, moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _links(value: Any) -> tuple[Any, ...]:
    return value.links if isinstance(value, Chain) else (value,)


def _filled(leaf: Any) -> jax.Array:
    """Specs have no values; moments start the same from any."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(leaf)


def _check_same(gradients: Any, params: Any, ctx: Context) -> None:
    given, wanted = leaf_paths(gradients), leaf_paths(params)
    for path in sorted(given.keys() | wanted.keys()):
        if path not in given or path not in wanted:
            raise ShapeMismatchError(
                f"{ctx.where}: expected a gradient for each of the params, got "
                f"{'none' if path in wanted else 'one too many'} for {path}. Pass "
                "(gradients, params) of one structure."
            )
        if jnp.shape(given[path]) != jnp.shape(wanted[path]):
            raise ShapeMismatchError(
                f"{ctx.where}: expected a gradient {describe(wanted[path])} for "
                f"{path}, got {describe(given[path])}. Pass (gradients, params) of one "
                "structure."
            )
