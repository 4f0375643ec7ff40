"""Pairs of functions, `(init, apply)`, as mappings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

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
from mapping.errors import FieldError, ProtocolError
from mapping.foreign import lenient_promotion
from mapping.interop.calls import KEYS, accepted, keyed, mode, placeholders
from mapping.interop.trees import find, names, nest, strong
from mapping.nesting import as_spec

STYLES = ("params", "state", "stax")
"""What the two functions take and return; see [`Pair`][]."""


@dataclasses.dataclass(frozen=True)
class Pair(Mapping):
    """Adapts two functions, one that makes params and one that uses them.

    | style    | functions                                           |
    |----------|-----------------------------------------------------|
    | `params` | `init(key, *inputs) -> params`                      |
    |          | `apply(params, *inputs) -> outputs`                 |
    | `state`  | `init(key, *inputs) -> (params, state)`             |
    |          | `apply(params, state, *inputs) -> (outputs, state)` |
    | `stax`   | `init(key, input_shape) -> (shape, params)`         |
    |          | `apply(params, input) -> output`                    |

    `init` may take the key alone. `apply` is given a key by an argument called `key`
    or `rng`, right before its inputs or by keyword, and the mode by a flag called
    `train`, `is_training`, `deterministic` or the like. (What stax makes knows since
    it was made whether it trains.) Params may be any tree: tuples and lists become
    dicts keyed by number.

    Attributes:
        init_fun: the function that makes params.
        apply_fun: the function that uses them.
        style: one of the above; None reads it off the functions: `state` where an
            argument of `apply` is called so, `stax` where the second of `init` is
            called `input_shape`.

    Raises:
        FieldError: if one is no function, or the style is unknown.
        ProtocolError: if they return something else than the style says.
        MissingKeyError: if a key is wanted and the context has none.
        MissingVariablesError: if variables are missing.

    >>> def start(key, x):
    ...     return [jax.random.normal(key, (x.shape[-1], 2))]
    >>> def multiply(params, x):
    ...     return x @ params[0]
    >>> pair = Pair(start, multiply)
    >>> v = pair.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 3), "float32"))
    >>> v.params["0"].shape, pair(v.params, jax.numpy.ones((5, 3))).shape
    ((3, 2), (5, 2))
    """

    init_fun: Callable[..., Any]
    apply_fun: Callable[..., Any]
    style: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.init_fun) or not callable(self.apply_fun):
            raise FieldError(
                "Pair: expected two functions, init and apply, got "
                f"{type(self.init_fun).__name__} and {type(self.apply_fun).__name__}. "
                "Give them in this order."
            )
        if self.style is None:
            object.__setattr__(self, "style", self._style())
        if self.style not in STYLES:
            raise FieldError(
                f"Pair.style: expected one of {', '.join(STYLES)}, got {self.style!r}."
            )

    @property
    def kind(self) -> str:
        """The name of the function that uses the params."""
        return getattr(self.apply_fun, "__name__", type(self).__name__)

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Runs `init`, with zeros where there are only shapes."""
        require_key(key)
        params, state = self._start(key, placeholders(specs))
        return Variables(_nested(params), _nested(state))

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs `apply` on the params in the form that `init` gave them."""
        require_variables(variables, ctx)
        params, state = _outline(self, *_hashable(as_spec(inputs)))
        where = f"{ctx.where} ({self.kind})"
        params = _as(params, variables.params, where)
        state = _as(state, variables.state, where)

        def run(key: Any) -> tuple[Any, State]:
            given, options = self._arguments(state, key, ctx.train)
            result = self.apply_fun(params, *given, *inputs, **options)
            if self.style != "state":
                return result, variables.state
            outputs, changed = _two(result, where, "apply", "(outputs, state)")
            return outputs, _nested(changed) if ctx.train else variables.state

        return keyed(run, ctx, self.kind, inputs)

    def _start(self, key: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        positional = [
            p for p in accepted(self.init_fun).values() if p.kind in _POSITIONAL
        ]
        if self.style == "stax":
            inputs = (jax.tree.map(lambda x: x.shape, *inputs),)
        elif len(positional) == 1 and positional[0].kind is not _ANY:
            inputs = ()
        with lenient_promotion():
            made = self.init_fun(key, *inputs)
        if self.style == "params":
            return made, {}
        where = f"{initialising().where} ({self.kind})"
        if self.style == "state":
            return _two(made, where, "init", "(params, state)")
        return _two(made, where, "init", "(output shape, params)")[1], {}

    def _arguments(
        self, state: Any, key: Any, train: bool
    ) -> tuple[list[Any], dict[str, Any]]:
        """What comes before the inputs, and what goes by keyword."""
        known = accepted(self.apply_fun)
        given: list[Any] = [state] if self.style == "state" else []
        rest = [*known][1 + len(given) :]
        options: dict[str, Any] = dict(mode(known, train))
        if rest and rest[0] in KEYS:
            given.append(key)
        else:
            options |= {name: key for name in KEYS if name in rest}
        if self.style == "stax" and key is not None:
            options["rng"] = key
        return given, options

    def _style(self) -> str:
        if "state" in [*accepted(self.apply_fun)][1:2]:
            return "state"
        shaped = [*accepted(self.init_fun)][1:2] == ["input_shape"]
        return "stax" if shaped else "params"


_ANY = inspect.Parameter.VAR_POSITIONAL
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    _ANY,
)


def _nested(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return nest((names(path), strong(jax.numpy.asarray(x))) for path, x in leaves)


def _as(outline: Any, tree: Any, where: str) -> Any:
    """Gives the arrays of a nested dict the form of `outline`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: find(tree, names(path), where), outline
    )


def _two(result: Any, where: str, function: str, what: str) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise ProtocolError(
            f"{where}: expected {function} to return {what}, got "
            f"{type(result).__name__}. Return both, or give Pair another style."
        )
    return result


def _hashable(specs: Any) -> tuple[tuple[Any, ...], Any]:
    leaves, tree = jax.tree.flatten(specs)
    return tuple(leaves), tree


@functools.lru_cache(maxsize=256)
def _outline(pair: Pair, leaves: tuple[Any, ...], tree: Any) -> tuple[Any, Any]:
    def start(key: Any, inputs: Any) -> Any:
        return pair._start(key, inputs)

    key = jax.random.key(0)
    return jax.eval_shape(start, key, jax.tree.unflatten(tree, leaves))
