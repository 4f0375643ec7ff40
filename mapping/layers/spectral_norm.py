"""Kernels of bounded stretch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mapping.core import Context, State, Variables, fold_name, init, initialising
from mapping.errors import FieldError
from mapping.fields import check_count
from mapping.foreign import named_errors
from mapping.layers.guard import learned, wide
from mapping.layers.linear import Dense
from mapping.layers.reparametrization import Around, nested
from mapping.nesting import gather
from mapping.registry import Example, register, spec


@register(
    "layer",
    "spectral_norm",
    examples=lambda: Example(SpectralNorm(Dense(2), steps=80), (spec(2, 3),)),
)
@dataclasses.dataclass(frozen=True)
class SpectralNorm(Around):
    r"""Divides each kernel by its largest singular value: the map stretches nothing.

    $$ \bar W = W / \sigma, \qquad \sigma = u^\top W v $$

    W is the kernel as a matrix (features out, the rest). u and v approach its leading
    singular vectors: in training `v <- W^T u`, `u <- W v`, each normalised, `steps`
    times in each call; in inference they stay, and sigma follows W through them. They
    start after fifteen steps. No gradient passes through them.

    Params: `inner`, those of the mapping. State: `u` (features out,) and `v` (the
    rest,), for each kernel under its path; `inner`, that of the mapping.

    Miyato et al., "Spectral normalization for generative adversarial networks", 2018,
    https://arxiv.org/abs/1802.05957. Equals
    torch.nn.utils.parametrizations.spectral_norm.

    Attributes:
        inner: any mapping with such leaves, a layer or a whole model.
        leaf: their name, or a glob of their paths.
        steps: power iterations in each call in training.
        epsilon: least length that is divided by.

    Raises:
        UnknownPathError: if there is no such leaf; it lists those there are.

    >>> layer = SpectralNorm(Dense(4, use_bias=False))
    >>> x = jnp.eye(3)
    >>> v = layer.init(jax.random.key(0), x)
    >>> effective = layer(v.params, x, state=v.state)
    >>> round(float(jnp.linalg.norm(effective, 2)), 2)
    1.0
    """

    steps: int = 1
    epsilon: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "SpectralNorm.steps")

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Initialises the mapping; u and v start near its singular vectors."""
        inner = init("inner", self.mapping, key, *specs)
        ctx = initialising()
        u, v = {}, {}
        for path, kernel in self.chosen(inner.params, ctx).items():
            matrix = _matrix(kernel, ctx)
            own = fold_name(key, f"v/{path}")
            start = jax.random.normal(own, matrix.shape[1:], matrix.dtype)
            u[path], v[path] = self._power(matrix, start, steps=15)
        made = gather({"inner": inner})
        state = {**made.state, "u": nested(u), "v": nested(v)}
        return Variables(made.params, state)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Calls the mapping with kernels of norm one."""
        (inner,) = learned(variables, ctx, self.kind, "inner")
        kernels = self.chosen(inner, ctx)
        u = dict(self.of_each(variables.state.get("u", {}), kernels, ctx))
        v = dict(self.of_each(variables.state.get("v", {}), kernels, ctx))
        for path, kernel in kernels.items():
            with named_errors(ctx, self.kind, (kernel, u[path], v[path])):
                kernels[path], u[path], v[path] = self._divided(
                    kernel, u[path], v[path], ctx
                )
        state = variables.state
        if ctx.train:
            state = {**state, "u": nested(u), "v": nested(v)}
        return self.run_with(kernels, Variables(variables.params, state), inputs, ctx)

    def _divided(
        self, kernel: jax.Array, u: jax.Array, v: jax.Array, ctx: Context
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The kernel over its norm, and the vectors as they go on."""
        matrix = _matrix(kernel, ctx)
        left, right = u.astype(matrix.dtype), v.astype(matrix.dtype)
        if ctx.train:
            left, right = self._power(jax.lax.stop_gradient(matrix), right, self.steps)
            u, v = left.astype(u.dtype), right.astype(v.dtype)
        sigma = left @ matrix @ right
        sigma = jnp.where(sigma == 0, 1.0, sigma)  # a kernel of zeros stays one
        return (wide(kernel) / sigma).astype(kernel.dtype), u, v

    def _power(
        self, matrix: jax.Array, v: jax.Array, steps: int
    ) -> tuple[jax.Array, jax.Array]:
        def unit(x: jax.Array) -> jax.Array:
            return x / jnp.maximum(jnp.linalg.norm(x), self.epsilon)

        def step(_: Any, pair: tuple[jax.Array, jax.Array]) -> Any:
            u = unit(matrix @ pair[1])
            return u, unit(matrix.T @ u)

        start = (jnp.zeros(matrix.shape[0], matrix.dtype), unit(v))
        if steps == 1:
            return step(0, start)
        return jax.lax.fori_loop(0, steps, step, start)


def _matrix(kernel: jax.Array, ctx: Context) -> jax.Array:
    """The kernel as (features out, the rest)."""
    if kernel.ndim == 0:
        raise FieldError(
            f"{ctx.where} (SpectralNorm): expected leaves of one axis or more, got a "
            "number. Choose others with leaf=..."
        )
    return wide(kernel).reshape(-1, kernel.shape[-1]).T
