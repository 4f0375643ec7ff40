"""Weights that are one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mapping.combinators.wrapper import Wrapper
from mapping.core import (
    Context,
    Mapping,
    Params,
    State,
    Variables,
    describe,
    initialising,
    leaf_paths,
    require_variables,
)
from mapping.errors import FieldError, ShapeMismatchError, UnknownPathError
from mapping.fields import check_fields
from mapping.nesting import as_spec, check_variables
from mapping.paths import nearest
from mapping.registry import Example, register, spec


@register("value", "tie")
@dataclasses.dataclass(frozen=True)
class Tie:
    """Says that the params at one path are those at another.

    Attributes:
        path: the params that are given up, a leaf or a whole branch.
        to: the params that stand for them.
        through: what they go through, such as `jnp.transpose`; nothing by default.

    >>> Tie("head/kernel", to="embed/embedding", through=jax.numpy.transpose).path
    'head/kernel'
    """

    path: str
    to: str
    through: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def _examples() -> Example:
    from mapping.layers import Dense

    net = Dense(4) >> jax.nn.tanh >> Dense(3)
    tie = Tie("dense_2/kernel", to="dense/kernel", through=jax.numpy.transpose)
    return Example(Shared(net, tie), (spec(2, 3),))


@register("combinator", "shared", examples=_examples)
@dataclasses.dataclass(frozen=True, init=False)
class Shared(Wrapper):
    r"""A mapping some of whose params are tied to others.

    $$ f_\theta(x) \;\text{with}\; \theta_{path} = g(\theta_{to}) $$

    The tied params exist once, at `to`, and gather the gradients of every use.
    (Inside a [`Model`][], calling a part twice shares it, without any tie.)

    Press & Wolf, "Using the Output Embedding to Improve Language Models", 2016,
    https://arxiv.org/abs/1608.05859.

    Attributes:
        inner: the mapping.
        ties: which params are which.

    Raises:
        UnknownPathError: at init, if a tie names no params; it lists the nearest.
        ShapeMismatchError: at init, if the two have different shapes.

    >>> from mapping.layers import Dense
    >>> tied = Shared(Dense(4) >> Dense(4), Tie("dense_2/kernel", to="dense/kernel"))
    >>> v = tied.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 4), "float32"))
    >>> list(leaf_paths(v.params))
    ['dense/bias', 'dense/kernel', 'dense_2/bias']
    """

    ties: tuple[Tie, ...]

    def __init__(self, inner: Mapping | Callable[..., Any], *ties: Tie) -> None:
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "ties", tuple(ties))
        for tie in ties:
            if not isinstance(tie, Tie):
                raise FieldError(
                    f"Shared.ties: expected Tie(path, to=...), got {tie!r}. Write "
                    "which params stand for which."
                )
        self.__post_init__()

    @classmethod
    def from_fields(cls, *, inner: Mapping, ties: tuple[Tie, ...] = ()) -> Shared:
        """Builds it from its fields."""
        return cls(inner, *ties)

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the mapping and gives the tied params up."""
        own = check_variables(self.mapping, self.mapping.init(key, *specs))
        where = initialising().where
        params = own.params
        for tie in self.ties:
            self._check(tie, params, where)
            params = _removed(params, tie.path.split("/"))
        return Variables(params, own.state)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies the mapping with the tied params in both places."""
        require_variables(variables, ctx)
        return self.mapping.apply(
            Variables(self.whole(variables.params, ctx), variables.state),
            *inputs,
            ctx=ctx,
        )

    def whole(self, params: Params, ctx: Context | None = None) -> Params:
        """Returns the params of the inner mapping, with every tie written out."""
        where = (ctx or Context()).where
        for tie in reversed(self.ties):
            if any(_below(path, tie.path) for path in leaf_paths(params)):
                raise ShapeMismatchError(
                    f"{where} (Shared): expected no params at {tie.path}, which is "
                    f"tied to {tie.to}, got some. Leave them out."
                )
            value = _value(tie, _found(params, tie.to, where))
            params = _inserted(params, tie.path.split("/"), value)
        return params

    def _check(self, tie: Tie, params: Params, where: str) -> None:
        target = as_spec(_found(params, tie.path, where))
        source = _found(params, tie.to, where)
        given = jax.eval_shape(lambda value: _value(tie, value), as_spec(source))
        if target != given:
            raise ShapeMismatchError(
                f"{where} (Shared): expected {describe(target)} for {tie.path}, got "
                f"{describe(given)} from {tie.to}. Tie it through jnp.transpose, or "
                "make the shapes equal."
            )


def _below(path: str, branch: str) -> bool:
    return path == branch or path.startswith(f"{branch}/")


def _value(tie: Tie, source: Any) -> Any:
    through = tie.through
    return source if through is None else jax.tree.map(through, source)


def _found(params: Params, path: str, where: str) -> Any:
    value: Any = params
    for name in path.split("/"):
        if not isinstance(value, dict) or name not in value:
            raise UnknownPathError(
                f"{where} (Shared): no params at {path}. Nearest: "
                f"{nearest(path, leaf_paths(params))}."
            )
        value = value[name]
    return value


def _removed(tree: Params, names: list[str]) -> Params:
    first, *rest = names
    kept = {name: child for name, child in tree.items() if name != first}
    inside = _removed(tree[first], rest) if rest else {}
    return kept | ({first: inside} if inside else {})


def _inserted(tree: Params, names: list[str], value: Any) -> Params:
    first, *rest = names
    inside = _inserted(tree.get(first, {}), rest, value) if rest else value
    return {**tree, first: inside}
