"""Importance from gradients of a loss: how much it would change without a unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.errors import CalibrationError
from compiler.passes.prune.importance.importance import Importance, arrays, sizes
from compiler.passes.prune.importance.units import Parts, Sums, parts, sums
from compiler.passes.quantize.calibrate import kept
from compiler.passes.quantize.mixed.gradients import Loss, check_loss, split
from mapping.core import register

if TYPE_CHECKING:
    from compiler.passes.prune.structure import Slot, Structure
    from compiler.program import Program

FORMS = ("abs", "signed", "squared")


@dataclasses.dataclass(frozen=True)
class _FromGradients(Importance):
    """Importance from products of weights and gradients.

    Attributes:
        loss: takes the outputs and what a batch holds behind the inputs, and returns a
            scalar; without batches it takes the variables.
        batches: tuples of the program's inputs and the rest.
    """

    loss: Loss | None = dataclasses.field(default=None, repr=False, compare=False)
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)

    def field(self, term: Any) -> Any:
        """What is summed over a unit's weights, from weight times gradient."""
        raise NotImplementedError

    def shaped(self, part: np.ndarray) -> np.ndarray:
        """What is averaged over batches, from those sums."""
        return part

    def parts(self, program: Program, structure: Structure) -> Parts:
        """The mean over batches."""
        wanted, size = self.counted(structure), sizes(structure)
        total: Parts = {}
        number = 0
        for found in self._each(program, wanted):
            number += 1
            own = parts(found, wanted, size)
            new = {name: [self.shaped(p) for p in ps] for name, ps in own.items()}
            total = _plus(total, new) if total else new
        if not number:
            raise CalibrationError(
                f"prune.{self.name}: expected at least one batch, got none. Pass a "
                "list of tuples of the program's inputs and what the loss needs."
            )
        return {name: [part / number for part in own] for name, own in total.items()}

    @property
    def name(self) -> str:
        """What users call it."""
        return type(self).__name__.lower()

    def _each(self, program: Program, wanted: dict[str, list[Slot]]) -> Iterator[Sums]:
        """The sums over units' slices of each batch."""
        every = [slot for own in wanted.values() for slot in own]
        keys = list(dict.fromkeys((slot.leaf, slot.axis) for slot in every))
        values = list(arrays(program, f"prune.{self.name}"))
        step = jax.jit(
            _step(
                _value(program, self._loss(), self.batches is None), self.field, every
            )
        )
        for number, batch in enumerate(self._batches(program)):
            used = {i: values[i] for i in sorted({leaf for leaf, _ in keys})}
            check_loss(step, (used, values, *batch), number)
            loss, made = jax.device_get(step(used, values, *batch))
            if not np.isfinite(loss):
                raise CalibrationError(
                    f"batch {number}: expected a finite loss, got {loss}. Look at the "
                    "batch, or leave it out."
                )
            yield dict(zip(keys, made, strict=True))

    def _batches(self, program: Program) -> Iterator[tuple[Any, Any]]:
        """Inputs, and what the loss takes besides."""
        if self.batches is None:
            yield (), ()
            return
        for number, batch in enumerate(self.batches):
            yield split(program, batch, number)

    def _loss(self) -> Loss:
        if self.loss is None:
            raise CalibrationError(
                f"prune.{self.name}: expected a loss, got none. Pass loss(outputs, "
                "*rest) with batches, or loss(variables) without."
            )
        return self.loss


def _value(program: Program, loss: Loss, alone: bool) -> Callable[..., Any]:
    """The loss of leaves and a batch, or of the leaves alone."""

    def value(leaves: Sequence[Any], inputs: Any, rest: Any) -> Any:
        variables = program.graph.pack(leaves)
        if alone:
            return loss(variables)
        return loss(program.function(variables, *inputs), *rest)

    return value


def _step(
    value: Callable[..., Any], field: Callable[..., Any], every: Sequence[Slot]
) -> Callable[..., Any]:
    """The loss of a batch, and what its gradients give the indices of each axis."""

    def step(used: dict[int, Any], values: Any, inputs: Any, rest: Any) -> Any:
        def of(used: dict[int, Any]) -> Any:
            leaves = [used.get(i, value) for i, value in enumerate(values)]
            return value(leaves, inputs, rest)

        found, gradients = jax.value_and_grad(of)(used)
        fields = {i: field(_term(w, gradients[i])) for i, w in used.items()}
        return found, list(sums(fields, every, jnp.float32).values())

    return step


def _term(w: Any, g: Any) -> Any:
    """What the loss loses when a weight becomes zero, to first order."""
    if jnp.iscomplexobj(w):
        return jnp.real(w * g).astype(jnp.float32)
    return w.astype(jnp.float32) * g.astype(jnp.float32)


def _plus(first: Parts, second: Parts) -> Parts:
    return {
        name: [a + b for a, b in zip(own, second[name], strict=True)]
        for name, own in first.items()
    }


@register("value", "prune_taylor")
@dataclasses.dataclass(frozen=True)
class Taylor(_FromGradients):
    r"""How much the loss would change without a unit, to first order.

    $$ \sum_{w \in k,u} \Big|\frac{\partial L}{\partial w} w\Big|, \qquad
       \Big|\sum_{w \in k,u} \frac{\partial L}{\partial w} w\Big|, \qquad
       \Big(\sum_{w \in k,u} \frac{\partial L}{\partial w} w\Big)^2 $$

    for the forms `"abs"`, `"signed"` and `"squared"`; the mean over batches.

    Attributes:
        form: what is done with the terms of a unit's slice.

    Raises:
        CalibrationError: if there are no batches, or the loss is not what was expected.
        ValueError: if there is no such form.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019,
    https://arxiv.org/abs/1906.10771.
    """

    form: str = "abs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise ValueError(
                f"prune.taylor: expected a form of {', '.join(FORMS)}, got "
                f"{self.form!r}."
            )

    def field(self, term: Any) -> Any:
        """The change of the loss, or its size."""
        return jnp.abs(term) if self.form == "abs" else term

    def shaped(self, part: np.ndarray) -> np.ndarray:
        """The form of the sum."""
        return part * part if self.form == "squared" else np.abs(part)


def taylor(
    loss: Loss,
    batches: Iterable[Any] | None = None,
    *,
    form: str = "abs",
    reduction: str = "mean",
    normalization: str = "mean",
    bias: bool = False,
) -> Taylor:
    """The first-order change of a loss; see [`Taylor`][].

    Args:
        loss: `loss(outputs, *rest)`, a scalar, the mean over examples; or, without
            batches, `loss(variables)`.
        batches: tuples of the program's inputs, then the rest.
        form: `"abs"`, `"signed"` or `"squared"`.
        reduction: over the slices of a unit.
        normalization: within a group.
        bias: whether biases count.

    >>> taylor(lambda y, target: ((y - target) ** 2).mean(), [(1.0, 2.0)]).form
    'abs'
    """
    return Taylor(reduction, normalization, bias, loss, kept(batches), form)


@register("value", "prune_fisher")
@dataclasses.dataclass(frozen=True)
class Fisher(_FromGradients):
    r"""How much the loss would rise without a unit, to second order, at a minimum.

    $$ s_{k,u} = \sum_{w \in k,u} \frac{1}{2}\, F_{w}\, w^2, \qquad
       F_w = \mathrm{E}\Big(\frac{\partial L}{\partial w}\Big)^2 $$

    $F$ is the diagonal of the empirical Fisher matrix, which stands for the Hessian's;
    its mean is over batches, so that batches of one example each give it exactly.
    Larger ones are faster and give a smaller, noisier one.

    Raises:
        CalibrationError: if there are no batches, or the loss is not what was expected.

    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989; Theis et al., "Faster
    gaze prediction with dense networks and Fisher pruning", 2018,
    https://arxiv.org/abs/1801.05787.
    """

    def field(self, term: Any) -> Any:
        """The rise of the loss."""
        return jnp.float32(0.5) * term * term


def fisher(
    loss: Loss,
    batches: Iterable[Any] | None = None,
    *,
    reduction: str = "mean",
    normalization: str = "mean",
    bias: bool = False,
) -> Fisher:
    """The second-order rise of a loss; see [`Fisher`][].

    Args:
        loss: `loss(outputs, *rest)`, a scalar; or, without batches, `loss(variables)`.
        batches: tuples of the program's inputs, then the rest.
        reduction: over the slices of a unit.
        normalization: within a group.
        bias: whether biases count.

    >>> fisher(lambda y, target: ((y - target) ** 2).mean(), [(1.0, 2.0)]).reduction
    'mean'
    """
    return Fisher(reduction, normalization, bias, loss, kept(batches))
