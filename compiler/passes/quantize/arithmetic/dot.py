"""Any `dot_general` as a product of matrices,

    [*stack, tokens, rows] @ [*stack, rows, columns] = [*stack, tokens, columns]

with the weight's rows and columns in the order of the leaf they are stored in, so that
what is stored need never be moved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from compiler import jaxprs
from compiler.passes.quantize.arithmetic.operand import (
    Arrangement,
    Atom,
    in_order,
    merged,
    span,
)


@dataclasses.dataclass(frozen=True)
class DotForm:
    """A `dot_general` as a product of matrices.

    Attributes:
        equation: the product.
        place: which operand the weight is.
        view: how that operand is the leaf.
        stack: the leaf's axes that number matrices.
        rows: the leaf's axes that are summed over.
    """

    equation: jaxprs.Equation
    place: int
    view: Arrangement
    stack: tuple[int, ...]
    rows: tuple[int, ...]

    def fits(self) -> bool:
        """Whether the product sums over the rows, all of them and nothing else."""
        contracted, batched = self._own
        view, count = self.view, range(len(self.view.axes))
        free = [i for i in count if i not in (*contracted, *batched)]
        columns = [
            axis
            for axis in range(len(view.shape))
            if axis not in self.rows and axis not in self.stack
        ]
        summed, numbered = self._atoms(contracted), self._atoms(batched)
        lone = [atom for atom in self._atoms(free) if atom.axis in self.stack]
        rest = [atom for atom in self._atoms(free) if atom.axis not in self.stack]
        return (
            self._covers(summed, self.rows)
            and self._covers(rest, columns)
            and self._covers([*numbered, *lone], self.stack)
            and all(atom.axis in self.stack for atom in numbered)
        )

    def activation(self, x: Any) -> Any:
        """The other operand as [*stack, tokens, rows]."""
        free, batched, contracted = self._other
        batch_atoms = self._atoms(self._own[1])
        row_atoms = self._atoms(self._own[0])
        x = jnp.transpose(x, (*batched, *free, *contracted))
        tokens = math.prod(x.shape[len(batched) : len(batched) + len(free)])
        shape = [a.extent for a in batch_atoms] + [tokens]
        x = jnp.reshape(x, shape + [a.extent for a in row_atoms])
        first, order = len(batch_atoms), in_order(row_atoms)
        stacked = in_order(batch_atoms)
        x = jnp.transpose(
            x,
            [batch_atoms.index(a) for a in stacked]
            + [first]
            + [first + 1 + row_atoms.index(a) for a in order],
        )
        sizes = dict.fromkeys(self.stack, 1)
        for atom in stacked:
            sizes[atom.axis] *= atom.extent
        x = jnp.reshape(x, [*sizes.values(), tokens, span(order)])
        whole = [self.view.shape[axis] for axis in self.stack]
        return jnp.broadcast_to(x, (*whole, tokens, x.shape[-1]))

    def result(self, y: Any) -> Any:
        """What the equation gives, from [*stack, tokens, columns]."""
        free, _, _ = self._other
        contracted, own_batched = self._own
        others = [i for i in range(len(self.view.axes)) if i not in contracted]
        own_free = [i for i in others if i not in own_batched]
        extents = {("token", i): self._other_shape[i] for i in free}
        tokens: list[Any] = list(extents)
        atoms = self._atoms(own_batched) + self._atoms(own_free)
        stacked = in_order([a for a in atoms if a.axis in self.stack])
        columns = in_order([a for a in atoms if a.axis not in self.stack])
        given = [*stacked, *tokens, *columns]
        sizes = extents | {atom: atom.extent for atom in (*stacked, *columns)}
        y = jnp.reshape(y, [sizes[each] for each in given])
        mine: list[Any] = list(self._atoms(own_free))
        sides = [*mine, *tokens] if self.place == 0 else [*tokens, *mine]
        wanted = [*self._atoms(own_batched), *sides]
        y = jnp.transpose(y, [given.index(each) for each in wanted])
        return jnp.reshape(y, self.equation.outvars[0].aval.shape)

    @property
    def _own(self) -> tuple[Sequence[int], Sequence[int]]:
        """The weight operand's axes that are contracted, and those that are batched."""
        contracted, batched = self.equation.params["dimension_numbers"]
        return contracted[self.place], batched[self.place]

    @property
    def _other(self) -> tuple[list[int], Sequence[int], Sequence[int]]:
        """The other operand's axes: free, batched, contracted."""
        contracted, batched = self.equation.params["dimension_numbers"]
        summed, numbered = contracted[1 - self.place], batched[1 - self.place]
        gone = (*summed, *numbered)
        free = [i for i in range(len(self._other_shape)) if i not in gone]
        return free, numbered, summed

    @property
    def _other_shape(self) -> tuple[int, ...]:
        return self.equation.invars[1 - self.place].aval.shape

    def _atoms(self, places: Sequence[int]) -> list[Atom]:
        return [atom for place in places for atom in self.view.axes[place]]

    def _covers(self, atoms: Sequence[Atom], axes: Sequence[int]) -> bool:
        whole = [(a, 1, self.view.shape[a]) for a in sorted(axes)]
        return list(merged(in_order(atoms))) == [w for w in whole if w[2] != 1]
