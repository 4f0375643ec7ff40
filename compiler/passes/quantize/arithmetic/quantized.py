"""A weight in few bits on its way from its leaf to the products that use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs, targets
from compiler.passes.factorize.symbolic import Symbolic, dense
from compiler.passes.quantize.arithmetic.accumulator import Known
from compiler.passes.quantize.arithmetic.activations import Activations, round_to
from compiler.passes.quantize.arithmetic.operand import Arrangement
from compiler.passes.quantize.arithmetic.views import Cut, seen_through
from compiler.passes.quantize.storage.encoding import Encoding

Scales = tuple[Any, ...]
"""The static scale of an activation, and its zero point if it has one."""


class Uses:
    """What is known of the products that a graph's weights meet.

    Attributes:
        activations: by the key of a product, how its other operand is rounded.
        decoded: by path, the equations that took the whole weight.
        repeated: paths of weights that were decoded in a loop, again and again.
        integer: keys of the products that are products of integers.
    """

    def __init__(
        self,
        keys: Mapping[tuple[str, int], str],
        activations: Mapping[str, Activations],
    ) -> None:
        """Takes keys by leaf and identity of equation."""
        self._keys = keys
        self.activations = activations
        self.decoded: dict[str, dict[str, None]] = {}
        self.repeated: set[str] = set()
        self.integer: set[str] = set()

    def key(self, path: str, equation: jaxprs.Equation) -> str:
        """The key of the product of a leaf in an equation."""
        return self._keys.get((path, id(equation)), path)


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized(Symbolic):
    """Stands for the weight that its parts encode.

    Attributes:
        path: of the leaf.
        encoding: how it is stored.
        stored: what is stored, by name.
        view: how its axes have been re-arranged since.
        dtype: of the values it stands for.
        uses: what is known of the products.
        scales: static scales of activations by the key of their product; the axes of
            loops the weight is stacked for come first.
        carrier: in training, the rounded weight as a differentiable array of the
            leaf's shape.
        looped: whether it is the constant of a loop.
    """

    path: str
    encoding: Encoding
    stored: dict[str, Any]
    view: Arrangement
    dtype: Any
    uses: Uses
    scales: dict[str, Scales] = dataclasses.field(default_factory=dict)
    carrier: Any = None
    looped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.view.extents

    def dense(self) -> Any:
        """Decodes all of it."""
        value = self.encoding.decode(self.stored)
        if self.carrier is not None:
            value = round_to(self.carrier, value)
        return self.view.apply(value).astype(self.dtype)

    def floats(self) -> Any:
        """What gradients flow through: the carrier in training, else the weight."""
        if self.carrier is None:
            return self.dense()
        return self.view.apply(self.carrier).astype(self.dtype)

    def multiplied(self, equation: jaxprs.Equation | None) -> None:
        """Reports it."""
        where = "an output"
        if equation is not None:
            where = f"{equation.primitive.name} ({jaxprs.source(equation)})"
        self.uses.decoded.setdefault(self.path, {})[where] = None
        if self.looped:
            self.uses.repeated.add(self.path)

    def in_loop(self) -> Symbolic:
        """The constant of a loop; a small one is decoded once, before."""
        if not self._is_rounded() and self._is_small():
            return Known(self.dense())
        return dataclasses.replace(self, looped=True)

    def _is_rounded(self) -> bool:
        """Whether a product with it is one of integers."""
        keys = (key.partition("#")[0] for key in self.uses.activations)
        return self.encoding.scheme.integer and self.path in keys

    def _is_small(self) -> bool:
        return not targets.in_tiles(self.encoding)

    def stacked(self) -> tuple[Any, Callable[[Any], Symbolic]] | None:
        """A scan goes along its first axis in every part."""
        axis = self._first()
        if axis is None or axis in self.encoding.rows or not self.sliceable(axis):
            return None
        place = self._numbered(axis).place(axis)
        moved = {k: jnp.moveaxis(v, place, 0) for k, v in self.stored.items()}
        carrier = None
        if self.carrier is not None:
            carrier = jnp.moveaxis(self.carrier, axis, 0)

        def make(slices: Any) -> Quantized:
            parts, scales, carried = slices
            return dataclasses.replace(
                self,
                encoding=self._numbered(axis).sliced(axis),
                stored=parts,
                view=self.view.without(axis),
                scales=scales,
                carrier=carried,
            )

        # A scale without an axis for the loop belongs to a product outside of it.
        scales = {key: own for key, own in self.scales.items() if jnp.ndim(own[0])}
        return (moved, scales, carrier), make

    def _first(self) -> int | None:
        """The leaf's axis that the first of the view is; any of extent one for one."""
        if self.view.extents[0] != 1:
            return self.view.whole(0)
        shape = enumerate(self.encoding.shape)
        ones = [axis for axis, n in shape if n == 1 and axis not in self.encoding.rows]
        return ones[0] if ones else None

    def _numbered(self, axis: int) -> Encoding:
        """The encoding with an axis that is indexed among those that number."""
        stack = {*self.encoding.stack, axis}
        return dataclasses.replace(self.encoding, stack=tuple(stack))

    def sliceable(self, axis: int) -> bool:
        """Whether every index of an axis has scales of its own."""
        shared = self.encoding.scheme.group == "tensor"
        return axis in self.encoding.stack or not shared

    def parts(self) -> tuple[Any, Callable[[Any], Symbolic]]:
        """All arrays, and what makes the value of arrays like them."""

        def make(arrays: Any) -> Quantized:
            parts, scales, carrier = arrays
            return dataclasses.replace(
                self, stored=parts, scales=scales, carrier=carrier
            )

        return (self.stored, self.scales, self.carrier), make

    def through(
        self, equation: jaxprs.Equation, operands: Sequence[Any], place: int
    ) -> list[Any] | None:
        """Goes through views as it is; meets products in few bits."""
        from compiler.passes.quantize.arithmetic.products import PRODUCTS

        name = equation.primitive.name
        operands = [o if i == place else dense(o) for i, o in enumerate(operands)]
        if name in PRODUCTS:
            result = PRODUCTS[name](self, equation, operands, place)
            return None if result is None else [result]
        return seen_through(self, equation, operands) if place == 0 else None

    def cut(self, place: int, extent: int, change: Cut) -> Quantized | None:
        """With one axis of the view cut in every part, by `change(array, axis)`."""
        axis, view = self.view.whole(place), self.view.narrowed(place, extent)
        if axis is None or view is None or axis in self.encoding.rows:
            return None
        stored = self._numbered(axis).place(axis)

        def changed(array: Any) -> Any:
            whole = array.shape[stored] == self.encoding.shape[axis]
            return change(array, stored) if whole else array

        shape = view.shape
        carrier = self.carrier if self.carrier is None else change(self.carrier, axis)
        return dataclasses.replace(
            self,
            encoding=dataclasses.replace(self.encoding, shape=shape),
            stored={name: changed(array) for name, array in self.stored.items()},
            view=view,
            carrier=carrier,
        )
