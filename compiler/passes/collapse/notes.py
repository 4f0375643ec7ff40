"""What the rules remember of a value, for the rules downstream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from compiler import jaxprs
from compiler.passes.collapse.layout import lay, plain, scaled
from compiler.rewrite import Operand, Result, Site
from compiler.uses import Users

MOST_PRODUCTS = 16
"""Of how many products a value may be made, to be looked through."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of a known value that was broadcast: what it was before.

    Attributes:
        value: the same rank, extent 1 on the axes it is constant along.
    """

    value: Any


@dataclasses.dataclass(frozen=True)
class Blocked:
    """Of a value through which no scale or shift gets to the product before it.

    Attributes:
        why: the reason, for the report.
    """

    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Of a value that is linear in known kernels, plus a bias.

    Attributes:
        bias: what is added, of the value's rank (extent 1 where constant).
        shared: whether a kernel is used elsewhere too.
        products: how many kernels there are.
    """

    bias: Any = None
    shared: bool = False
    products: int = 1

    def product(self) -> Any:
        """Emits the value without its bias."""
        raise NotImplementedError

    def scaled(self, factor: Any) -> Linear | None:
        """With a factor in the kernels; the bias as it is. None if it does not fit."""
        raise NotImplementedError

    def value(self) -> Any:
        """Emits the value."""
        product = self.product()
        return product if self.bias is None else product + self.bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product(Linear):
    """Of a product with a known kernel.

    Attributes:
        emit: computes the product for another kernel.
        kernel: the kernel it has now.
        sources: for each axis of the kernel, the value's axis it makes, or None.
    """

    emit: Callable[[Any], Any]
    kernel: Any
    sources: tuple[int | None, ...]

    def product(self) -> Any:
        """Emits the product."""
        return self.emit(self.kernel)

    def scaled(self, factor: Any) -> Product | None:
        """With a factor in the kernel, if it is constant along all other axes."""
        placed = lay(factor, self.sources)
        if placed is None:
            return None
        return dataclasses.replace(self, kernel=self.kernel * placed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made(Linear):
    """Of what is made linearly of such values: a reshape, a sum, a concatenation.

    Attributes:
        parts: the values, whose biases are not looked at.
        emit: computes it from the parts.
        back: the factor for one part that does what a factor after does, or None.
    """

    parts: Sequence[Linear]
    emit: Callable[..., Any]
    back: Callable[[Any, int], Any | None]

    def product(self) -> Any:
        """Emits the parts and what is made of them."""
        return self.emit(*(part.product() for part in self.parts))

    def scaled(self, factor: Any) -> Made | None:
        """With a factor in every part."""
        parts = []
        for i, part in enumerate(self.parts):
            own = self.back(factor, i)
            new = None if own is None else part.scaled(own)
            if new is None:
                return None
            parts.append(new)
        return dataclasses.replace(self, parts=tuple(parts))


def moved(
    part: Linear, emit: Callable[[Any], Any], back: Callable[[Any], Any | None]
) -> Made:
    """What is made of one value; see `Made`."""
    return Made(
        parts=(part,),
        emit=emit,
        back=lambda factor, _: back(factor),
        shared=part.shared,
        products=part.products,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(Linear):
    """Of a value whose bias stays where it is.

    Attributes:
        inner: the value.
    """

    inner: Linear

    def product(self) -> Any:
        """Emits the value, its bias included."""
        return self.inner.value()

    def scaled(self, factor: Any) -> Whole | None:
        """With a factor in the kernels and in the bias."""
        new = self.inner.scaled(factor)
        if new is None:
            return None
        bias = scaled(self.inner.bias, factor)
        return dataclasses.replace(self, inner=dataclasses.replace(new, bias=bias))


def whole(value: Linear) -> Linear:
    """The same value, without a bias that would have to be moved."""
    if value.bias is None:
        return value
    return Whole(inner=value, shared=value.shared, products=value.products)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
    """Of a value that is an affine map of another: base * scale + shift.

    Attributes:
        base: emits the other value, once however often it is asked.
        shape: of the base; the value may be its broadcast.
        scale: known, of the value's rank (extent 1 where constant), or None for 1.
        shift: the same, or None for 0.
        steps: how many elementwise equations of the value's size it saves to have
            the base instead.
        covered: whether the site where it is computed is refused should any of it be
            left, so that several users may each do without it.
        site: the last equation it is made of, to be refused if it does not pay.
    """

    base: Callable[[], Any]
    shape: tuple[Any, ...]
    scale: Any = None
    shift: Any = None
    steps: int = 1
    covered: bool = False
    site: Site | None = None

    @property
    def least(self) -> int:
        """How many elementwise equations it takes."""
        return (self.scale is not None) + (self.shift is not None)

    def value(self) -> Any:
        """Emits the value."""
        value = self.base()
        if self.scale is not None:
            value = value * self.scale
        return value if self.shift is None else value + self.shift


def constant(operand: Operand) -> Any:
    """A known operand, no larger than what it was broadcast from."""
    note = operand.note
    return plain(note.value if isinstance(note, Spread) else operand.value)


def affine(operand: Operand) -> Affine | None:
    """The affine map an operand is, if its users may do without it.

    A product with a bias is one, of the product.
    """
    note = operand.note
    if isinstance(note, Affine):
        return note if note.covered or operand.uses == 1 else None
    if isinstance(note, Linear) and note.bias is not None and operand.uses == 1:
        return Affine(base=note.product, shape=operand.shape, shift=note.bias)
    return None


def identity(operand: Operand) -> Affine:
    """An operand as an affine map of itself."""
    return Affine(base=lambda: operand.value, shape=operand.shape, steps=0)


def linear(operand: Operand) -> Linear | None:
    """What an operand is linear in, if it is used once."""
    note = operand.note
    return note if isinstance(note, Linear) and operand.uses == 1 else None


def noted(site: Site, operands: Sequence[Operand], note: Affine) -> list[Result] | None:
    """Emits an equation as it was and notes the affine map its result is.

    Where several may do without the result, it is marked: if one of them needs it
    after all, the site is refused and none does without.
    """
    if site.refused:
        return None
    values = [operand.value for operand in operands]
    if may_absorb(site.users):
        with site.early():
            (value,) = jaxprs.bind(site.equation, values)
        return [Result(value, dataclasses.replace(note, covered=True))]
    note = dataclasses.replace(note, covered=False)
    return [Result(site.emit(*values)[0], note)]


def may_absorb(users: Users) -> bool:
    """Whether several equations, and these only, use a value and could do without."""
    names = {None if user is None else user.primitive.name for user in users}
    return len(users) > 1 and names <= _MAY_ABSORB


_MAY_ABSORB = frozenset(
    (
        "dot_general",
        "conv_general_dilated",
        "jit",
        "closed_call",
        "transpose",
        "reshape",
        "squeeze",
        "broadcast_in_dim",
    )
)
"""What may lead to a product, or be one."""
