"""Which zeros may stand where: anywhere, n of m neighbours, whole blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

Pattern: TypeAlias = str | tuple[int, int] | None
"""None: anywhere. `"n:m"`: n of every m neighbours along what a product sums over are
kept. A pair: whole blocks of so many features and columns."""

Aim: TypeAlias = float | str | None
"""What a rule asks for: a share of zeros, `"n:m"`, or None to leave a weight."""

RuleSpec: TypeAlias = Mapping[str, Aim] | Sequence[tuple[str, Aim]]

_N_OF_M = re.compile(r"([0-9]{1,4}):([0-9]{1,4})")


def n_and_m(pattern: Pattern) -> tuple[int, int] | None:
    """The numbers of an n:m pattern; None for any other.

    >>> n_and_m("2:4")
    (2, 4)
    """
    if not isinstance(pattern, str):
        return None
    found = _N_OF_M.fullmatch(pattern)
    n, m = map(int, found.groups()) if found else (0, 0)
    if not 1 <= n <= m:
        raise ValueError(
            f"pattern: expected 'n:m' such as '2:4' (2 of 4 are kept), got {pattern!r}."
        )
    return n, m


def checked_pattern(pattern: Pattern) -> Pattern:
    """A pattern as passes hold it.

    Raises:
        ValueError: if it is none.

    >>> checked_pattern([4, 1])
    (4, 1)
    """
    if pattern is None or n_and_m(pattern):
        return pattern
    sizes = tuple(size for size in pattern if type(size) is int and size > 0)
    if len(sizes) != 2 or len(pattern) != 2:
        raise ValueError(
            "pattern: expected None, 'n:m', or a pair of block sizes (features, "
            f"columns), got {pattern!r}."
        )
    return sizes[0], sizes[1]


def checked_sparsity(sparsity: float | None, pattern: Pattern, name: str) -> float:
    """The share of zeros that a number and a pattern ask for together.

    Raises:
        ValueError: if there is none, it is no share, or the two disagree.

    >>> checked_sparsity(None, "1:4", "prune.magnitude")
    0.75
    """
    pair = n_and_m(pattern)
    own = 1 - pair[0] / pair[1] if pair else None
    given = own if sparsity is None else sparsity
    if given is None:
        raise ValueError(
            f"{name}: expected a sparsity from 0 to 1, got none. Only a pattern 'n:m' "
            "tells it."
        )
    if own is not None and not math.isclose(given, own, abs_tol=1e-9):
        raise ValueError(
            f"{name}: pattern {pattern!r} makes a sparsity of {own:g}, got {given!r}. "
            "Leave the sparsity out."
        )
    if isinstance(given, bool) or not 0 <= given <= 1:
        raise ValueError(f"{name}: expected a sparsity from 0 to 1, got {given!r}.")
    return float(given)


def as_rules(
    given: RuleSpec, ignore: str | Sequence[str] = ()
) -> tuple[tuple[str, Aim], ...]:
    """Rules of what users write, what is left out first.

    >>> as_rules({"head/*": 0.5}, ignore="embed")
    (('embed', None), ('head/*', 0.5))
    """
    globs = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((glob, None) for glob in globs) + checked_rules(pairs)


def checked_rules(pairs: Iterable[tuple[str, Aim]]) -> tuple[tuple[str, Aim], ...]:
    """Pairs of globs and aims.

    Raises:
        ValueError: naming the rule that asks for what there is not.
    """
    made = []
    for glob, aim in pairs:
        if isinstance(aim, str):
            checked_pattern(aim)
        elif aim is not None:
            checked_sparsity(aim, None, f"rule {glob!r}")
        made.append((glob, aim))
    return tuple(made)
