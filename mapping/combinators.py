"""The algebra: mappings made of mappings."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax

from mapping.core import (
    INIT_PATH,
    Context,
    Mapping,
    State,
    Variables,
    call,
    check_result,
    describe,
    fold_name,
    require_variables,
)
from mapping.errors import (
    FieldError,
    NameCollisionError,
    NotAMappingError,
    ProtocolError,
)

Step = tuple[str | None, Mapping]


@dataclasses.dataclass(frozen=True)
class Lift(Mapping):
    """Lifts a plain function to a mapping without params or state.

    $$ y = f(x_1, \\dots, x_n) $$

    Attributes:
        function: any named pure JAX function.
        options: keyword arguments, as sorted pairs; give them as `Lift.of(f, a=1)`.

    >>> Lift(jax.nn.relu)({}, jax.numpy.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    >>> Lift.of(jax.nn.gelu, approximate=False) == Lift.of(
    ...     jax.nn.gelu, approximate=False)
    True
    """

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], **options: Any) -> Lift:
        """Lifts `function` with keyword arguments fixed."""
        return cls(function, tuple(sorted(options.items())))

    def __post_init__(self) -> None:
        if isinstance(self.function, functools.partial):
            function = self.function
            if function.args:
                raise FieldError(
                    "Lift.function: expected a named function, got a partial with "
                    "positional arguments, which never equals itself once rebuilt. "
                    "Fix keywords only: Lift.of(function, name=value)."
                )
            options = {**function.keywords, **dict(self.options)}
            object.__setattr__(self, "function", function.func)
            object.__setattr__(self, "options", tuple(sorted(options.items())))

    def __reduce__(self) -> Any:
        """Copies and pickles a function by the name it is imported by."""
        home, name = getattr(self.function, "__module__", ""), self.kind
        found = getattr(sys.modules.get(home), name, None)
        function = (home, name) if found is self.function else self.function
        return _lift_again, (function, self.options)

    @property
    def kind(self) -> str:
        """The function's own name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Applies the function; the state passes through."""
        try:
            return self.function(*inputs, **dict(self.options)), variables.state
        except Exception as error:
            error.add_note(f"in {ctx.where} ({self.kind}), given {describe(inputs)}")
            raise


@dataclasses.dataclass(frozen=True)
class Serial(Mapping):
    """Composition: each step is given what the one before it returned.

    $$ y = (f_n \\circ \\dots \\circ f_1)(x) $$

    Steps given by keyword carry the name you chose; steps given by position are
    named after their kind (`dense`, `dense_2`, ...). Names are the paths of
    params, state, randomness and the compiler's reports, so choose them where you
    mean to keep a checkpoint. `Serial()` is the identity.

    Attributes:
        steps: pairs of a name (None where it was not chosen) and a mapping.

    Raises:
        NameCollisionError: if two steps are given the same name.
        NotAMappingError: if a step is neither a mapping nor a function.

    >>> from mapping.layers import Dense
    >>> net = Serial(hidden=Dense(8), act=jax.nn.relu, head=Dense(2))
    >>> net.names
    ('hidden', 'act', 'head')
    >>> (Dense(8) >> jax.nn.relu >> Dense(2)).names
    ('dense', 'relu', 'dense_2')
    """

    steps: tuple[Step, ...]

    def __init__(self, *steps: Mapping | Callable[..., Any], **named: Any) -> None:
        pairs = [(None, as_mapping(step)) for step in steps]
        pairs += [(name, as_mapping(step)) for name, step in named.items()]
        object.__setattr__(self, "steps", tuple(pairs))
        self.__post_init__()

    def __post_init__(self) -> None:
        chosen = [name for name, _ in self.steps if name is not None]
        for name in chosen:
            if not name or "/" in name:
                raise NameCollisionError(
                    f"Serial: expected names without /, which joins names to paths, "
                    f"got {name!r}. Rename the step."
                )
        twice = sorted({name for name in chosen if chosen.count(name) > 1})
        if twice:
            raise NameCollisionError(
                f"Serial: expected each name once, got {twice} twice. Rename one, or "
                "keep each part whole under a name of its own: Serial(first=..., "
                "second=...)."
            )

    @classmethod
    def from_steps(cls, steps: tuple[Step, ...]) -> Serial:
        """Builds a composition from `(name or None, mapping)` pairs."""
        serial = cls()
        object.__setattr__(serial, "steps", tuple(steps))
        serial.__post_init__()
        return serial

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every step, chosen or derived."""
        taken = {name for name, _ in self.steps if name is not None}
        names = []
        for name, mapping in self.steps:
            names.append(name or _free_name(_snake(mapping.kind), taken))
            taken.add(names[-1])
        return tuple(names)

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises each step for what the steps before it produce."""
        params, state = {}, {}
        for name, (_, step) in zip(self.names, self.steps, strict=True):
            variables, specs = _init_step(name, step, fold_name(key, name), specs)
            if variables.params:
                params[name] = variables.params
            if variables.state:
                state[name] = variables.state
        return Variables(params, state)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs the steps in order."""
        require_variables(variables, ctx)
        new_state = dict(variables.state)
        for name, (_, step) in zip(self.names, self.steps, strict=True):
            output, state = call(name, step, variables, *inputs, ctx=ctx)
            inputs = (output,)
            if state:
                new_state[name] = state
        return inputs[0] if len(inputs) == 1 else inputs, new_state


def _lift_again(function: Any, options: tuple[tuple[str, Any], ...]) -> Lift:
    if isinstance(function, tuple):
        function = getattr(importlib.import_module(function[0]), function[1])
    return Lift(function, options)


def chain(first: Any, second: Any) -> Mapping:
    """`first >> second`, flattened so that composition is associative."""
    first, second = as_mapping(first), as_mapping(second)
    if first == _IDENTITY:
        return second
    if second == _IDENTITY:
        return first
    return Serial.from_steps((*_steps(first), *_steps(second)))


_IDENTITY = Serial()


def as_mapping(value: Any) -> Mapping:
    """Returns a mapping as it is and lifts a function.

    Raises:
        NotAMappingError: if `value` is neither.
    """
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type) and issubclass(value, Mapping):
        raise NotAMappingError(
            f"{value.__name__}: expected a mapping, got the class itself. Call it: "
            f"{value.__name__}(...)."
        )
    if callable(getattr(value, "apply", None)) and callable(
        getattr(value, "init", None)
    ):
        raise NotAMappingError(
            f"{type(value).__name__}: expected a mapping, got another framework's "
            "module. Lift a flax.linen module with mapping.layers.Linen(module)."
        )
    if any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(value)):
        raise NotAMappingError(
            f"{type(value).__name__}: expected a mapping or a function, got a module "
            "that holds its arrays; they would be frozen. Write a mapping whose "
            "params are its arrays, or trace it with compiler.trace."
        )
    if isinstance(value, functools.partial) and not value.args:
        return Lift.of(value.func, **value.keywords)
    if callable(value):
        return Lift(value)
    raise NotAMappingError(
        f"expected a mapping or a function, got {type(value).__name__} {value!r}."
    )


def _init_step(
    name: str, step: Mapping, key: jax.Array, specs: tuple[Any, ...]
) -> tuple[Variables, tuple[Any, ...]]:
    """Initialises one step and finds what the next one will be given."""
    path = (*INIT_PATH.get(), name)
    token = INIT_PATH.set(path)
    try:
        variables = step.init(key, *specs)
        if not isinstance(variables, Variables):
            raise ProtocolError(
                f"{'/'.join(path)} ({step.kind}): init should return Variables(params, "
                f"state), got {type(variables).__name__}. Wrap it in Variables."
            )
        ctx = Context(key=key, path=path)

        def forward(variables: Variables, *inputs: Any) -> Any:
            result = step.apply(variables, *inputs, ctx=ctx)
            return check_result(step, result, ctx)[0]

        return variables, (jax.eval_shape(forward, variables, *specs),)
    finally:
        INIT_PATH.reset(token)


def _steps(mapping: Mapping) -> tuple[Step, ...]:
    return mapping.steps if isinstance(mapping, Serial) else ((None, mapping),)


def _snake(kind: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower().strip("_<>") or "step"


def _free_name(base: str, taken: set[str]) -> str:
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name
