"""Training two networks against each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mapping.core import (
    Context,
    Mapping,
    State,
    Variables,
    fold_name,
    initialising,
    require_variables,
)
from mapping.errors import FieldError, MissingVariablesError
from mapping.flow import Flow
from mapping.foreign import lenient_promotion, require_arrays
from mapping.models.gan import Gan

SIDES = ("discriminator", "generator")
"""In the order of their turns."""


@dataclasses.dataclass(frozen=True)
class GanStep(Mapping):
    r"""One turn of each network: first it learns to judge, then to deceive.

    $$ \ell_D = \overline{\log(1 + e^{-D(x)})} + \overline{\log(1 + e^{D(G(z))})},
       \qquad \ell_G = \overline{\log(1 + e^{-D(G(z'))})} $$

    The generator's is the non-saturating loss: its gradient does not vanish where
    the discriminator is sure. Each turn moves the params of one network; the second
    sees what the first has learnt. Noise is `fold_in(key, step)`'s.

    It takes real examples and returns both losses. State, as of [`TrainStep`][]: the
    pair's `params` and `state`, the `optimizer`'s moments of each network, the `step`
    and the root `key`. It moves in training only; in inference it measures.

    Goodfellow et al., "Generative Adversarial Networks", 2014,
    https://arxiv.org/abs/1406.2661.

    Attributes:
        gan: the two networks.
        generator: any optax transform, for the generator's params.
        discriminator: another, for the discriminator's.

    Raises:
        FieldError: if an optimizer is none.

    >>> from mapping.layers import Dense
    >>> gan = Gan(latent=1, generator=Dense(2), discriminator=Dense(1))
    >>> step = GanStep(gan, optax.sgd(1e-3), optax.sgd(1e-3))
    >>> x = jnp.ones((8, 2))
    >>> v = step.init(jax.random.key(0), x)
    >>> logs, state = step.apply(v, x, ctx=Context(train=True))
    >>> sorted(logs), int(state["step"])
    (['discriminator', 'generator'], 1)
    """

    gan: Gan
    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation

    def __post_init__(self) -> None:
        if not isinstance(self.gan, Gan):
            raise FieldError(f"GanStep.gan: expected a Gan, got {self.gan!r}.")
        for side in SIDES:
            optimizer = getattr(self, side)
            if not isinstance(optimizer, optax.GradientTransformation):
                raise FieldError(
                    f"GanStep.{side}: expected an optax transform, got {optimizer!r}. "
                    "Call it, such as optax.adam(2e-4, b1=0.5)."
                )

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes fresh networks and optimizers for examples like those given."""
        require_arrays(initialising(), self.kind, specs, count=1)
        (real,) = specs
        noise = jax.ShapeDtypeStruct((real.shape[0], self.gan.latent), _dtype(real))
        return self.start(key, self.gan.init(fold_name(key, "init"), real, noise))

    def start(self, key: jax.Array, variables: Variables) -> Variables:
        """Makes the step's variables for networks that already have their own."""
        moments = {
            side: getattr(self, side).init(variables.params[side]) for side in SIDES
        }
        state = {"params": variables.params, "state": variables.state}
        zero = jnp.zeros((), jnp.int32)
        return Variables({}, {**state, "optimizer": moments, "step": zero, "key": key})

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[dict[str, jax.Array], State]:
        """Takes real examples; returns both losses and the new state."""
        require_arrays(ctx, self.kind, inputs, count=1)
        require_variables(variables, ctx)
        now = moved = variables.state
        if not {"params", "state", "optimizer", "step", "key"} <= now.keys():
            raise MissingVariablesError(
                f"{ctx.where} (GanStep): expects the state that its init made, got "
                f"{sorted(now)}. Pass the Variables that init or start returned."
            )
        logs, root = {}, jax.random.fold_in(now["key"], now["step"])
        for side in SIDES:
            inner = Context(fold_name(root, side), ctx.train)
            logs[side], turned = self._turn(side, moved, *inputs, inner)
            moved = turned if ctx.train else now
        return logs, {**moved, "step": now["step"] + int(ctx.train)}

    def _turn(
        self, side: str, now: State, real: jax.Array, ctx: Context
    ) -> tuple[jax.Array, State]:
        """Moves the params of one network down its own loss."""
        own, moments = now["params"][side], now["optimizer"][side]

        def objective(params: Any) -> tuple[jax.Array, State]:
            whole = {**now["params"], side: params}
            return self._loss(side, Variables(whole, now["state"]), real, ctx)

        (loss, state), grads = jax.value_and_grad(objective, has_aux=True)(own)
        with lenient_promotion():
            updates, moments = getattr(self, side).update(grads, moments, own)
        return loss, {
            **now,
            "params": {**now["params"], side: optax.apply_updates(own, updates)},
            "state": state,
            "optimizer": {**now["optimizer"], side: moments},
        }

    def _loss(
        self, side: str, variables: Variables, real: jax.Array, ctx: Context
    ) -> tuple[jax.Array, State]:
        shape = (len(real), self.gan.latent)
        noise = jax.random.normal(ctx.rng("noise"), shape, _dtype(real))
        if side == "generator":
            flow = Flow(self.gan, "fool")
            invented, state = flow.apply(variables, noise, ctx=ctx)
            return jax.nn.softplus(-invented).mean(), state
        scores, state = self.gan.apply(variables, real, noise, ctx=ctx)
        seen, invented = scores
        return jax.nn.softplus(-seen).mean() + jax.nn.softplus(invented).mean(), state


def _dtype(real: Any) -> Any:
    return real.dtype if jnp.issubdtype(real.dtype, jnp.floating) else jnp.float32
