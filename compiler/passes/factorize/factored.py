"""A weight that is, up to a dense part, the product of two smaller ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.factorize.symbolic import Symbolic, dense

RANK = -1
"""The label of the axis two factors share."""


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """An array with a label for each axis; [`RANK`][] is one of them.

    Attributes:
        array: the values.
        labels: of its axes.
    """

    array: Any
    labels: tuple[int, ...]

    def along(self, label: int, change: Callable[[Any, int], Any]) -> Factor:
        """Changes the axis with a label, if there is one."""
        if label not in self.labels:
            return self
        return Factor(change(self.array, self.labels.index(label)), self.labels)

    def dropped(self, label: int) -> Factor:
        """Without the axis of a label, which has extent one."""
        if label not in self.labels:
            return self
        axis = self.labels.index(label)
        rest = tuple(each for each in self.labels if each != label)
        return Factor(jnp.squeeze(self.array, axis), rest)

    def extent(self, label: int) -> int:
        """The extent of the axis with a label; one if there is none."""
        here = label in self.labels
        return self.array.shape[self.labels.index(label)] if here else 1

    def ordered(self, labels: Sequence[int]) -> Any:
        """The array with these axes, of extent one where it has none."""
        have = [label for label in labels if label in self.labels]
        array = jnp.transpose(self.array, [self.labels.index(each) for each in have])
        return jnp.reshape(array, [self.extent(label) for label in labels])

    def regrouped(
        self, old: Sequence[int], new: Sequence[int], extents: Sequence[int]
    ) -> Factor:
        """With the axes of `old` labels reshaped to `extents` under `new` ones."""
        if not set(old) & set(self.labels):
            return self
        rest = tuple(label for label in self.labels if label not in old)
        kept = [self.extent(label) for label in rest]
        array = jnp.reshape(self.ordered((*rest, *old)), [*kept, *extents])
        return Factor(array, (*rest, *new))


@dataclasses.dataclass(frozen=True, eq=False)
class Factored(Symbolic):
    r"""Stands for `base + scale * left @ right`.

    $$ W_{b\,i\,o} = W^0_{b\,i\,o} + s \sum_r L_{b\,i\,r} R_{b\,r\,o} $$

    where $b$, $i$ and $o$ may each be several axes, in any order.

    Attributes:
        left: one factor.
        right: the other.
        labels: of its own axes, each of which a factor has, or both.
        dtype: of its values.
        base: the dense part, if there is one.
        scale: of the product.
        report: called with each equation that takes the product of the factors, and
            whether that is in a loop that it is a constant of.
        apart: whether a product takes the base by itself where it takes the product
            of the factors multiplied out.
        looped: whether it is the constant of a loop.
    """

    left: Factor
    right: Factor
    labels: tuple[int, ...]
    dtype: Any
    base: Any = None
    scale: float = 1.0
    report: Callable[[jaxprs.Equation | None, bool], None] | None = None
    apart: bool = False
    looped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(
            max(self.left.extent(label), self.right.extent(label), key=lambda n: n != 1)
            for label in self.labels
        )

    def dense(self) -> Any:
        """Multiplies it out."""
        product = contract(self.left, self.right, self.labels).ordered(self.labels)
        product = jnp.reshape(product, self.shape).astype(self.dtype)
        if self.base is None:
            return product
        return self.base + product * self.scale

    def multiplied(self, equation: jaxprs.Equation | None) -> None:
        """Reports it."""
        if self.report is not None:
            self.report(equation, self.looped)

    def in_loop(self) -> Factored:
        """The constant of a loop."""
        return dataclasses.replace(self, looped=True)

    def stacked(self) -> tuple[Any, Callable[[Any], Symbolic]] | None:
        """A scan goes along its first axis in each factor that has it, and the base."""
        first = self.labels[0]
        moved = [self._leading(factor, first) for factor in self.pair]
        arrays = [f.array if first in f.labels else None for f in moved]

        def make(slices: Any) -> Factored:
            base, *parts = slices
            factors = [
                f if part is None else Factor(part, f.labels[1:])
                for f, part in zip(moved, parts, strict=True)
            ]
            return self._with(base, *factors, labels=self.labels[1:])

        return [self.base, *arrays], make

    def parts(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """The base and the two factors."""

        def make(arrays: Any) -> Factored:
            base, left, right = arrays
            left = Factor(left, self.left.labels)
            return self._with(base, left, Factor(right, self.right.labels))

        return [self.base, self.left.array, self.right.array], make

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """Goes through views as it is, and through products one factor at a time."""
        from compiler.passes.factorize.products import PRODUCTS
        from compiler.passes.factorize.views import VIEWS

        name = equation.primitive.name
        operands = [o if i == place else dense(o) for i, o in enumerate(operands)]
        if name in PRODUCTS:
            value = PRODUCTS[name](equation, operands, place)
            if value is None and self.apart:
                value = self._multiplied(equation, operands, place)
            return None if value is None else [self._sum(equation, operands, value)]
        if name not in VIEWS or place != 0:
            return None
        views = VIEWS[name](self, equation, operands)
        if views is None or self.base is None:
            return views
        bases = jaxprs.bind(equation, [self.base, *operands[1:]])
        pairs = zip(views, bases, strict=True)
        return [dataclasses.replace(view, base=base) for view, base in pairs]

    def scaled(self, factor: Factor) -> Factor:
        """A factor times the scale."""
        if self.scale == 1.0:
            return factor
        return Factor(factor.array * self.scale, factor.labels)

    def _multiplied(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> Any:
        """The product with the factors multiplied out."""
        self.multiplied(equation)
        alone = dataclasses.replace(self, base=None).dense() * self.scale
        whole = [*operands[:place], alone, *operands[place + 1 :]]
        return jaxprs.bind(equation, whole)[0]

    def _sum(
        self, equation: jaxprs.Equation, operands: Sequence[Any], value: Any
    ) -> Any:
        """The product of the factors added to that of the base."""
        value = value.astype(equation.outvars[0].aval.dtype)
        if self.base is None:
            return value
        place = operands.index(self)
        whole = [*operands[:place], self.base, *operands[place + 1 :]]
        return jaxprs.bind(equation, whole)[0] + value

    @property
    def pair(self) -> tuple[Factor, Factor]:
        """Its factors."""
        return self.left, self.right

    def _with(
        self,
        base: Any,
        left: Factor,
        right: Factor,
        labels: tuple[int, ...] | None = None,
    ) -> Factored:
        labels = self.labels if labels is None else labels
        return dataclasses.replace(
            self, base=base, left=left, right=right, labels=labels
        )

    def both(
        self, change: Callable[[Factor], Factor], labels: tuple[int, ...] | None = None
    ) -> Factored:
        """With both factors changed."""
        return self._with(self.base, change(self.left), change(self.right), labels)

    def _leading(self, factor: Factor, label: int) -> Factor:
        if label not in factor.labels:
            return factor
        labels = (label, *(each for each in factor.labels if each != label))
        return Factor(factor.ordered(labels), labels)


def wider(first: Any, second: Any) -> Any:
    """The dtype that holds the values of both, whatever promotion the user allows."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def contract(a: Factor, b: Factor, kept: Sequence[int], **options: Any) -> Factor:
    """Multiplies two factors, summing over the labels they share but for those kept."""
    shared = [label for label in a.labels if label in b.labels]
    batch = [label for label in shared if label in kept]
    summed = [label for label in shared if label not in kept]

    def places(labels: Sequence[int]) -> tuple[list[int], list[int]]:
        left, right = ([f.labels.index(each) for each in labels] for f in (a, b))
        return left, right

    free = [label for f in (a, b) for label in f.labels if label not in shared]
    dtype = wider(a.array.dtype, b.array.dtype)
    arrays = (a.array.astype(dtype), b.array.astype(dtype))
    array = jax.lax.dot_general(*arrays, (places(summed), places(batch)), **options)
    return Factor(array, (*batch, *free))
