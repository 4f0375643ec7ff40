"""A dense layer whose kernel is a train of small tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, zeros

from mapping.core import (
    Context,
    Mapping,
    Params,
    State,
    Variables,
    describe,
    fold_name,
    initialising,
)
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.foreign import named_errors, require_arrays
from mapping.layers.guard import learned, require_axes, together
from mapping.registry import Example, register, spec


@register(
    "layer",
    "tensor_train_dense",
    examples=lambda: (
        Example(TensorTrainDense(6, (2, 4), (3, 2), (2,)), (spec(3, 8),)),
        Example(TensorTrainDense(8, (2, 3, 2), (2, 2, 2), (2, 3), False), (spec(12),)),
    ),
)
@dataclasses.dataclass(frozen=True)
class TensorTrainDense(Mapping):
    r"""An affine map of the last axis whose kernel is a product of small tensors.

    $$ W_{(i_1 \dots i_n),\,(o_1 \dots o_n)} =
       \sum_{r_1 \dots r_{n-1}} G^1_{1,\, i_1 o_1\, r_1} G^2_{r_1,\, i_2 o_2\, r_2}
       \cdots G^n_{r_{n-1},\, i_n o_n,\, 1}, \qquad y = x W + b $$

    It is a [`Dense`][] with fewer params: the sum over k of
    r_{k-1} in_k out_k r_k for the product of all in_k and out_k. The kernel itself is
    never made; `kernel(params)` makes it.

    Params: `core_1` to `core_n` (r_{k-1}, in_k, out_k, r_k) with r_0 = r_n = 1, `bias`
    (features,).

    Novikov et al., "Tensorizing neural networks", 2015,
    https://arxiv.org/abs/1509.06569.

    Attributes:
        features: size of the last axis of the output.
        in_shape: factors of the number of features in.
        out_shape: as many factors of `features`.
        ranks: r_1 to r_{n-1}, one fewer.
        use_bias: whether `b` is there.
        core_init: initialiser of the cores; by default normal, of a variance that
            makes the kernel's that of LeCun, 1 / features in.
        bias_init: initialiser of `bias`; zeros by default.

    Raises:
        FieldError: if the factors do not multiply to `features`, or their numbers
            do not fit each other.
        ShapeMismatchError: if they do not multiply to the features in.

    >>> layer = TensorTrainDense(32, in_shape=(4, 16), out_shape=(4, 8), ranks=(3,))
    >>> x = jnp.ones((5, 64))
    >>> params = layer.init(jax.random.key(0), x).params
    >>> layer(params, x).shape, sum(p.size for p in jax.tree.leaves(params))
    ((5, 32), 464)
    >>> bool(jnp.allclose(layer(params, x), x @ layer.kernel(params), atol=1e-5))
    True
    """

    features: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    ranks: tuple[int, ...]
    use_bias: bool = True
    core_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name in ("in_shape", "out_shape", "ranks"):
            value, where = getattr(self, name), f"TensorTrainDense.{name}"
            if not isinstance(value, tuple):
                raise FieldError(f"{where}: expected a tuple, got {value!r}.")
            for i, extent in enumerate(value):
                check_count(extent, f"{where}[{i}]")
        cores = len(self.in_shape)
        if not cores or len(self.out_shape) != cores or len(self.ranks) != cores - 1:
            raise FieldError(
                "TensorTrainDense: expected as many factors out as in, and one rank "
                f"fewer, got in_shape {self.in_shape}, out_shape {self.out_shape}, "
                f"ranks {self.ranks}. A factor may be 1."
            )
        if math.prod(self.out_shape) != self.features:
            raise FieldError(
                f"TensorTrainDense.out_shape: expected factors of {self.features} "
                f"features, got {self.out_shape}, which multiply to "
                f"{math.prod(self.out_shape)}. Choose factors of {self.features}."
            )

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes the cores."""
        ctx = initialising()
        require_arrays(ctx, self.kind, specs, count=1)
        self._require_factors(ctx, specs[0])
        start = self.core_init or normal(self._deviation())
        with named_errors(ctx, self.kind, specs):
            params = {
                name: start(fold_name(key, name), shape, jnp.float32)
                for name, shape in self._shapes().items()
            }
            if self.use_bias:
                start, own = self.bias_init or zeros, fold_name(key, "bias")
                params["bias"] = start(own, (self.features,), jnp.float32)
        return Variables(params)

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[Any, State]:
        """Contracts the input with one core after the other."""
        require_arrays(ctx, self.kind, inputs, count=1)
        names = (*self._shapes(), *(("bias",) if self.use_bias else ()))
        own = learned(variables, ctx, self.kind, *names)
        self._require_factors(ctx, inputs[0])
        with named_errors(ctx, self.kind, inputs):
            x, *own = together(*inputs, *own)
            y = self._contract(x, own[: len(self.in_shape)])
            for bias in own[len(self.in_shape) :]:
                y = y + jnp.broadcast_to(bias, y.shape)
        return y, variables.state

    def kernel(self, params: Params) -> jax.Array:
        """The whole kernel, (features in, features)."""
        cores = [params[name] for name in self._shapes()]
        whole = cores[0]
        for core in cores[1:]:
            whole = jnp.tensordot(whole, core, 1)
        count = len(cores)
        order = [1 + 2 * k for k in range(count)] + [2 + 2 * k for k in range(count)]
        whole = jnp.transpose(whole[0, ..., 0], [axis - 1 for axis in order])
        return whole.reshape(math.prod(self.in_shape), self.features)

    def _contract(self, x: jax.Array, cores: list[jax.Array]) -> jax.Array:
        """Each core takes the next axis in and the rank; its axis out goes last."""
        batch = x.shape[:-1]
        z = x.reshape((*batch, *self.in_shape, 1))
        for core in cores:
            z = jnp.tensordot(z, core, ((len(batch), z.ndim - 1), (1, 0)))
        return z.reshape((*batch, self.features))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        ranks = (1, *self.ranks, 1)
        return {
            f"core_{k + 1}": (
                ranks[k],
                self.in_shape[k],
                self.out_shape[k],
                ranks[k + 1],
            )
            for k in range(len(self.in_shape))
        }

    def _deviation(self) -> float:
        """An entry of the kernel sums prod(ranks) products of n entries."""
        variance = 1 / (math.prod(self.in_shape) * math.prod(self.ranks))
        return math.sqrt(variance ** (1 / len(self.in_shape)))

    def _require_factors(self, ctx: Context, x: Any) -> None:
        require_axes(ctx, self.kind, x, 1, "features")
        if math.prod(self.in_shape) != x.shape[-1]:
            raise ShapeMismatchError(
                f"{ctx.where} (TensorTrainDense): expects in_shape {self.in_shape} to "
                f"multiply to the features in, got {math.prod(self.in_shape)} for "
                f"{describe(x)}. Choose factors of {x.shape[-1]}."
            )
