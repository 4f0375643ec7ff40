"""A weight on its way to its product, with an array beside it that goes along."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.factorize.symbolic import Symbolic
from compiler.passes.quantize.arithmetic.operand import Arrangement, in_order, merged
from compiler.passes.quantize.arithmetic.views import Cut, seen_through


@dataclasses.dataclass
class Report:
    """What became of the weights that were tried.

    Attributes:
        inputs: by path, what a product read: equal for those that read the same.
        whole: by path, what needed the weight as it was.
        divided: paths of weights whose inputs are divided already.
    """

    inputs: dict[str, Hashable] = dataclasses.field(default_factory=dict)
    whole: dict[str, str] = dataclasses.field(default_factory=dict)
    divided: set[str] = dataclasses.field(default_factory=set)
    _read: list[Any] = dataclasses.field(default_factory=list)

    def read(self, path: str, value: Any, layout: Hashable) -> None:
        """Told of the value a product reads; it is kept, so that it stays itself."""
        self._read.append(value)
        self.inputs[path] = (id(value), layout)

    def why_not(self, path: str) -> str:
        """Why a weight cannot have company; empty if it can."""
        if path in self.divided:
            return "its inputs are divided already"
        if path in self.whole:
            return f"is needed as it is by {self.whole[path]}"
        return "" if path in self.inputs else "is never used"


@dataclasses.dataclass(frozen=True, eq=False)
class Accompanied(Symbolic):
    """Stands for a weight that has factors for its rows, or terms for its columns.

    Attributes:
        path: of the leaf.
        array: of the leaf's shape.
        beside: of the leaf's rank, of extent one along the axes it has no part in.
        view: how the axes of both have been re-arranged since.
        dtype: of the values it stands for.
        report: told of its products.
    """

    path: str
    array: Any
    beside: Any
    view: Arrangement
    dtype: Any
    report: Report

    def dense(self) -> Any:
        """The weight as it was."""
        return self.view.apply(self.alone()).astype(self.dtype)

    def alone(self) -> Any:
        """The weight as it was, as the leaf has it."""
        raise NotImplementedError

    def met(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """What a product gives; None if it needs the weight as it was."""
        raise NotImplementedError

    def multiplied(self, equation: jaxprs.Equation | None) -> None:
        """Reports it."""
        where = "an output"
        if equation is not None:
            where = f"{equation.primitive.name} ({jaxprs.source(equation)})"
        self.report.whole.setdefault(self.path, where)

    def stacked(self) -> tuple[Any, Callable[[Any], Symbolic]] | None:
        """A scan goes along its first axis in both arrays."""
        axis = self.view.whole(0)
        if axis is None or self.beside.shape[axis] != self.array.shape[axis]:
            return None
        pair = [jnp.moveaxis(a, axis, 0) for a in (self.array, self.beside)]
        view = self.view.without(axis)
        return pair, lambda slices: self._with(*slices, view=view)

    def parts(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """Both arrays."""
        return [self.array, self.beside], lambda pair: self._with(*pair)

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """Goes through views as it is, to products."""
        name = equation.primitive.name
        if name == "dot_general" or (name == "conv_general_dilated" and place == 1):
            return self.met(equation, operands, place)
        if place != 0:
            return None
        return seen_through(self, equation, operands, ("dynamic_slice",))

    def weight(self) -> Any:
        """The array as the product takes it."""
        return self.view.apply(self.array).astype(self.dtype)

    def along(self, places: Sequence[int]) -> Any | None:
        """What is beside, along axes of the view; None if they are not all it has."""
        axes = tuple(self.view.axes[place] for place in places)
        atoms = merged(in_order([atom for some in axes for atom in some]))
        whole = [(i, 1, n) for i, n in enumerate(self.beside.shape) if n != 1]
        if [tuple(atom) for atom in atoms] != whole:
            return None
        return Arrangement(self.beside.shape, axes).apply(self.beside)

    def layout(self, places: Sequence[int]) -> Hashable:
        """How what is beside lies along axes of the view, whatever else there is."""
        own = [i for i, n in enumerate(self.beside.shape) if n != 1]
        return tuple(
            tuple(
                (own.index(a.axis), a.stride, a.extent) for a in self.view.axes[place]
            )
            for place in places
        )

    def cut(self, place: int, extent: int, change: Cut) -> Accompanied | None:
        """With one axis of the view cut in both arrays."""
        axis, view = self.view.whole(place), self.view.narrowed(place, extent)
        if axis is None or view is None:
            return None
        there = self.beside.shape[axis] == self.array.shape[axis]
        beside = change(self.beside, axis) if there else self.beside
        return self._with(change(self.array, axis), beside, view=view)

    def _with(
        self, array: Any, beside: Any, view: Arrangement | None = None
    ) -> Accompanied:
        return dataclasses.replace(
            self, array=array, beside=beside, view=view or self.view
        )


def spread(values: Any, axes: Sequence[int], shape: Sequence[int]) -> Any:
    """Values that have some axes of a shape, in any order, as an array of it."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
    kept = [n if axis in axes else 1 for axis, n in enumerate(shape)]
    return jnp.broadcast_to(jnp.reshape(jnp.transpose(values, order), kept), shape)
