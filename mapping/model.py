"""Models of your own: named parts, and the flow of data between them, written once."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any

import jax
import jax.numpy as jnp

from mapping.captured import join_captured, split_captured
from mapping.combinators.lift import as_mapping
from mapping.context import (
    INIT_PATH,
    Context,
    Params,
    State,
    Variables,
    fold_name,
    initialising,
    numbered,
    require_key,
    require_variables,
)
from mapping.core import Mapping
from mapping.errors import (
    NameCollisionError,
    ProtocolError,
    ShapeMismatchError,
    UnknownPathError,
)
from mapping.nesting import (
    Spec,
    as_spec,
    call,
    gather,
    init,
    outline,
    output_spec,
    under,
)
from mapping.paths import nearest


@dataclasses.dataclass(frozen=True)
class Model(Mapping):
    """A mapping made of named parts.

    Say what the parts are in `parts`, and how data flows through them in `forward`
    (without one, through each in turn). `init` follows the same flow with shapes
    alone, so nothing is said twice. A part that is called twice has one set of
    variables, which is how weights are shared; each call draws its own randomness.

    >>> from mapping.layers import Dense
    >>> @dataclasses.dataclass(frozen=True)
    ... class Block(Model):
    ...     features: int
    ...
    ...     def parts(self):
    ...         return {"act": jax.nn.relu, "dense": Dense(self.features)}
    ...
    ...     def forward(self, run, x):
    ...         return x + run.act(run.dense(x))
    >>> x = jnp.ones((2, 4))
    >>> variables = Block(4).init(jax.random.key(0), x)
    >>> sorted(variables.params), Block(4)(variables.params, x).shape
    (['dense'], (2, 4))
    """

    def parts(self) -> Dict[str, Mapping | Callable[..., Any]]:
        """Returns the parts by name: mappings, or functions."""
        raise TypeError(
            f"{self.kind}: expected a method `parts(self)` that returns a dict of "
            "mappings by name, found none. Define it."
        )

    def forward(self, run: Run, *inputs: Any, **nothing: Any) -> Any:
        """Returns the outputs; by default, each part is given what the last returned.

        Args:
            run: the parts, to be called as `run.name(x)` or `run(name, x)`; with
                `run.train`, `run.rng()` and `run.params`.
            *inputs: the model's own.
            **nothing: a subclass takes no more.
        """
        for name in self.parts():
            inputs = (run(name, *inputs),)
        return inputs[0]

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises each part for what it is first given."""
        require_key(key)
        parts = _parts(self)
        sketch = _Sketch(parts)
        self._check_count(specs, initialising())
        for train in (False, True):
            if parts.keys() - sketch.given:  # some may be used in training alone
                sketch.ctx = dataclasses.replace(sketch.ctx, train=train)
                jax.eval_shape(lambda *xs: self.forward(sketch, *xs), *as_spec(specs))
        return gather(
            {
                name: init(name, parts[name], fold_name(key, name), *given)
                for name, given in sketch.given.items()
            }
        )

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Runs `forward`."""
        require_variables(variables, ctx)
        self._check_count(inputs, ctx)
        run = Run(_parts(self), variables, ctx)
        outputs = self.forward(run, *inputs)
        if outputs is None:
            raise ProtocolError(
                f"{ctx.where} ({self.kind}): forward should return the outputs, got "
                "None. End it with `return`."
            )
        return outputs, run.state

    def _check_count(self, inputs: tuple[Any, ...], ctx: Context) -> None:
        takes = inspect.signature(self.forward)
        try:
            takes.bind(None, *inputs)
        except TypeError as error:
            wanted = ", ".join(list(takes.parameters)[1:])
            raise ShapeMismatchError(
                f"{ctx.where} ({self.kind}): expects the inputs ({wanted}), got "
                f"{len(inputs)}: {error}. Give it what its forward takes."
            ) from error


class Run:
    """The parts of a [`Model`][] at work: calls them and gathers their state.

    Attributes:
        params: the model's own, by the names of its parts.
        state: the state so far.
        ctx: the model's context.
    """

    def __init__(
        self, parts: dict[str, Mapping], variables: Variables, ctx: Context
    ) -> None:
        self._parts = parts
        self.params: Params = variables.params
        self.state: dict[str, Any] = dict(variables.state)
        self.ctx = ctx
        self._calls: Counter[str] = Counter()

    @property
    def train(self) -> bool:
        """Whether statistics are gathered and units dropped."""
        return self.ctx.train

    def rng(self, name: str = "") -> jax.Array:
        """The key of the model's path, and of `name` within it."""
        return self.ctx.rng(name)

    def __call__(self, name: str, *inputs: Any) -> Any:
        """Calls the part called `name`."""
        if name not in self._parts:
            raise UnknownPathError(
                f"{self.ctx.where}: the model has no part {name!r}. Nearest: "
                f"{nearest(name, self._parts)}."
            )
        return self._call(name, *inputs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """`run.name(x)` is `run("name", x)`."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *inputs: self(name, *inputs)

    def _call(self, name: str, *inputs: Any) -> Any:
        variables, ctx = Variables(self.params, self.state), self.ctx
        if self._calls[name]:
            ctx = numbered(ctx, self._calls[name])
        self._calls[name] += 1
        outputs, state = call(name, self._parts[name], variables, *inputs, ctx=ctx)
        if self.ctx.capture:
            seen = split_captured(self.state.get(name, {}))[1]
            state = join_captured(seen, state)
        if state:
            self.state[name] = state
        return outputs


class _Sketch(Run):
    """A run with shapes alone, which notes what each part is first given."""

    def __init__(self, parts: dict[str, Mapping]) -> None:
        ctx = Context(key=jax.random.key(0), path=INIT_PATH.get())
        super().__init__(parts, Variables({}, {}), ctx)
        self.given: dict[str, tuple[Spec, ...]] = {}

    def _call(self, name: str, *inputs: Any) -> Any:
        part, specs = self._parts[name], as_spec(inputs)
        with under(name):
            if name in self.given:
                own = Variables(self.params, self.state).child(name)
                return _placeholders(output_spec(part, own, *specs))
            own, outputs = outline(part, *specs)
        self.given[name] = specs
        self.params = {**self.params, name: _placeholders(own.params)}
        self.state[name] = _placeholders(own.state)
        return _placeholders(outputs)


def _parts(model: Model) -> dict[str, Mapping]:
    parts = {name: as_mapping(part) for name, part in model.parts().items()}
    for name in parts:
        if not name or "/" in name or hasattr(Run, name) or name in _RESERVED:
            raise NameCollisionError(
                f"{model.kind}.parts: {name!r} is no name for a part. Use one without "
                f"/, and none of {', '.join(sorted(_RESERVED))}."
            )
    return parts


_RESERVED = frozenset(["params", "state", "ctx", "train", "rng", "given"])


def _placeholders(specs: Spec) -> Any:
    """Values that stand for shapes, inside `jax.eval_shape`."""

    def one(spec: Any) -> jax.Array:
        if jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), spec.shape)
        return jnp.zeros(spec.shape, spec.dtype)

    return jax.tree.map(one, specs)
