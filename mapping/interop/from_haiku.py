"""Haiku transforms as mappings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any

import haiku as hk
import jax

from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    initialising,
    require_key,
    require_variables,
)
from mapping.errors import FieldError, MissingVariablesError, NameCollisionError
from mapping.foreign import lenient_promotion
from mapping.interop.calls import accepted, keyed, mode, once_each, placeholders
from mapping.interop.trees import Names, nest, strong

PAIRS = (hk.Transformed, hk.TransformedWithState)
"""What haiku makes of a function."""


@dataclasses.dataclass(frozen=True)
class Haiku(Mapping):
    """Adapts a haiku transform, or a function that one is made of.

    Haiku's module names become paths: `{"mlp/~/linear_0": {"w": ...}}` is the param
    `mlp/~/linear_0/w`. A flag of the function for training (`is_training`, `train`,
    ...) is set from the context. State moves in training only.

    Attributes:
        function: a function that uses haiku modules, or what `hk.transform` or
            `hk.transform_with_state` made of it. Give the function where you can: it
            equals itself when the transform is made again.

    Raises:
        FieldError: if it is neither.
        MissingKeyError: if the function wants a key and the context has none.
        MissingVariablesError: if variables are missing.
        NameCollisionError: if state holds dicts, whose keys would be taken for modules.

    >>> def network(x):
    ...     return hk.nets.MLP([4, 2])(x)
    >>> net = Haiku(network)
    >>> v = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 3), "float32"))
    >>> v.params["mlp"]["~"]["linear_1"]["w"].shape
    (4, 2)
    """

    function: Callable[..., Any] | hk.Transformed | hk.TransformedWithState

    def __post_init__(self) -> None:
        if isinstance(self.function, hk.Module) or not (
            callable(self.function) or isinstance(self.function, PAIRS)
        ):
            raise FieldError(
                "Haiku.function: expected a function that makes haiku modules and "
                f"calls them, got {type(self.function).__name__}. Use "
                "Haiku(hk.transform_with_state(function))."
            )

    @property
    def kind(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", type(self).__name__)

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Runs haiku's own init, in training mode: its batch norm asks for that."""
        require_key(key)
        plan = _plan(self)
        with lenient_promotion():
            made = plan.init(key, *placeholders(specs), **plan.mode(train=True))
        made = jax.tree.map(strong, made)
        params, state = made if plan.stateful else (made, {})
        where = f"{initialising().where} ({self.kind})"
        return Variables(nested(params, where), nested(state, where))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the function in the context's mode."""
        require_variables(variables, ctx)
        plan, where = _plan(self), f"{ctx.where} ({self.kind})"
        params, state = flat(variables.params), flat(variables.state)

        def run(key: Any) -> tuple[Any, State]:
            given = [params, state] if plan.stateful else [params]
            given += [key] if plan.takes_key else []
            result = plan.apply(*given, *inputs, **plan.mode(ctx.train))
            if not plan.stateful:
                return result, variables.state
            outputs, changed = result
            return outputs, nested(changed, where) if ctx.train else variables.state

        try:
            return keyed(run, ctx, self.kind, inputs)
        except ValueError as error:
            if "must be created as part of `init`" not in str(error):
                raise
            raise MissingVariablesError(
                f"{where}: expects variables made by its init, got params "
                f"{sorted(params)}. Pass the Variables that init returned."
            ) from error


def nested(tree: Dict[str, Dict[str, Any]], where: str = "haiku") -> dict[str, Any]:
    """Splits haiku's module names into the branches of a nested dict.

    Where a module has the name of another's param, it keeps its name in one piece, so
    that [`flat`][] always finds the way back.

    >>> nested({"mlp": {"scale": 1}, "mlp/~/linear": {"w": 2}})
    {'mlp': {'scale': 1, '~': {'linear': {'w': 2}}}}
    """
    leaves = {
        (*module.split("/"), name) for module, own in tree.items() for name in own
    }
    pairs: list[tuple[Names, Any]] = []
    for module, own in tree.items():
        steps = tuple(module.split("/"))
        hidden = any(steps[: i + 1] in leaves for i in range(len(steps)))
        steps = (module,) if hidden else steps
        pairs += [((*steps, name), leaf) for name, leaf in own.items()]
    branches = nest(pairs)
    if jax.tree.structure(flat(branches)) != jax.tree.structure(_plain(tree)):
        raise NameCollisionError(
            f"{where}: expected arrays in haiku's params and state, got dicts, whose "
            "keys would be taken for names of modules. Store each array by a name of "
            "its own."
        )
    return branches


def flat(tree: Dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Joins the branches of a nested dict to haiku's module names.

    >>> flat({"mlp": {"scale": 1, "~": {"linear": {"w": 2}}}})
    {'mlp': {'scale': 1}, 'mlp/~/linear': {'w': 2}}
    """
    modules: dict[str, dict[str, Any]] = {}

    def visit(branch: Dict[str, Any], steps: Names) -> None:
        for name, value in branch.items():
            if isinstance(value, Dict):
                visit(value, (*steps, name))
            else:
                modules.setdefault("/".join(steps), {})[name] = value

    visit(tree, ())
    return modules


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How the two functions of a transform are called."""

    init: Callable[..., Any]
    apply: Callable[..., Any]
    stateful: bool
    takes_key: bool

    def mode(self, train: bool) -> dict[str, bool]:
        """The function's flag for training."""
        return mode([*accepted(self.init)][1:], train)


@once_each
def _plan(mapping: Haiku) -> _Plan:
    pair = mapping.function
    if not isinstance(pair, PAIRS):
        pair = hk.transform_with_state(pair)
    stateful = isinstance(pair, hk.TransformedWithState)
    takes_key = [*accepted(pair.apply)][1 + stateful : 2 + stateful] == ["rng"]
    return _Plan(pair.init, pair.apply, stateful, takes_key)


def _plain(tree: Dict[str, Dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same as plain dicts, without modules that hold nothing."""
    return {module: dict(own) for module, own in tree.items() if own}
