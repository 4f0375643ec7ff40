"""What two trees do not have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from mapping.core import Tree, describe, leaf_paths


@dataclasses.dataclass(frozen=True)
class Difference:
    """One leaf that two trees do not have in common.

    Attributes:
        path: of the leaf.
        before: what the first tree holds there, or None.
        after: what the second tree holds there, or None.
        distance: the largest absolute difference of its values, where only those
            differ; nan where one of them is nan.
        note: a hint.
    """

    path: str
    before: str | None
    after: str | None
    distance: float | None = None
    note: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        """Its cells in the printed table."""
        mark = "~"
        if self.before is None or self.after is None:
            mark = "+" if self.before is None else "-"
        distance = "" if self.distance is None else f"{self.distance:.3g}"
        return (
            mark,
            self.path,
            self.before or "",
            self.after or "",
            distance,
            self.note,
        )


@dataclasses.dataclass(frozen=True)
class Diff:
    """All leaves that two trees do not have in common; false if there are none.

    Attributes:
        entries: sorted by path.
        total: how many leaves there are in either.
        titles: what the two trees are called in the printed table.

    >>> before = {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}
    >>> after = {"kernel": np.full((2, 3), 0.5), "scale": np.ones(3)}
    >>> print(diff(before, after))
       path    before         after          distance
    -  bias    float64[3]
    ~  kernel  float64[2, 3]  float64[2, 3]  0.5
    +  scale                  float64[3]
    3 of 3 leaves differ.
    """

    entries: tuple[Difference, ...]
    total: int
    titles: tuple[str, str] = ("before", "after")

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def added(self) -> tuple[str, ...]:
        """Paths that only the second tree has."""
        return tuple(e.path for e in self.entries if e.before is None)

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths that only the first tree has."""
        return tuple(e.path for e in self.entries if e.after is None)

    @property
    def changed(self) -> tuple[str, ...]:
        """Paths whose leaves have another shape or dtype, or are no arrays."""
        both = (e for e in self.entries if e.before is not None and e.after is not None)
        return tuple(e.path for e in both if e.distance is None)

    @property
    def moved(self) -> dict[str, float]:
        """The distance of the leaves that differ in their values alone, by path."""
        return {e.path: e.distance for e in self.entries if e.distance is not None}

    def table(self, most: int | None = None) -> str:
        """The printed table, of `most` rows at most."""
        if not self.entries:
            return f"No difference in {self.total} leaves."
        shown = self.entries[:most]
        rows: list[tuple[str, ...]] = [("", "path", *self.titles, "distance", "")]
        rows += [entry.row for entry in shown]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if len(shown) < len(self.entries):
            lines.append(f"... and {len(self.entries) - len(shown)} more.")
        lines.append(f"{len(self.entries)} of {self.total} leaves differ.")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def diff(before: Tree, after: Tree) -> Diff:
    """Compares two trees leaf by leaf.

    Values are compared where shapes and dtypes agree, and where both are known: a
    `ShapeDtypeStruct` has none. nan equals nan.

    >>> bool(diff({"a": np.ones(2)}, {"a": np.ones(2)}))
    False
    >>> diff({"a": np.zeros(2)}, {"a": np.ones(2)}).moved
    {'a': 1.0}
    """
    first, second = leaf_paths(before), leaf_paths(after)
    found = []
    for path in sorted({*first, *second}):
        if path not in second:
            found.append(Difference(path, describe(first[path]), None))
        elif path not in first:
            found.append(Difference(path, None, describe(second[path])))
        else:
            entry = _compared(path, first[path], second[path])
            found += [] if entry is None else [entry]
    return Diff(tuple(found), len({*first, *second}))


def _compared(path: str, a: Any, b: Any) -> Difference | None:
    if not (_is_array(a) and _is_array(b)):
        same = a is b or (type(a) is type(b) and bool(a == b))
        return None if same else Difference(path, f"{a!r:.40}", f"{b!r:.40}")
    if _spec(a) != _spec(b):
        return Difference(path, _described(a), _described(b))
    if isinstance(a, jax.ShapeDtypeStruct) or isinstance(b, jax.ShapeDtypeStruct):
        return None
    distance = _distance(_values(a), _values(b))
    if distance is None:
        return None
    return Difference(path, _described(a), _described(b), distance)


def _distance(a: np.ndarray, b: np.ndarray) -> float | None:
    """The largest absolute difference; None if there is none."""
    with np.errstate(all="ignore"):
        differs = (a != b) & ~((a != a) & (b != b))  # only nan is not itself
        if not differs.any():
            return None
        wide = np.complex128 if np.iscomplexobj(a) else np.float64
        apart = np.abs(a[differs].astype(wide) - b[differs].astype(wide)).max()
    if jax.dtypes.issubdtype(a.dtype, np.inexact):
        return float(apart)
    return max(float(apart), 1.0)  # neighbouring large integers are one float


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)


def _spec(leaf: Any) -> tuple[Any, ...]:
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype
    return (), type(leaf)


def _described(leaf: Any) -> str:
    return describe(leaf) if hasattr(leaf, "dtype") else f"{type(leaf).__name__} {leaf}"


def _values(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
