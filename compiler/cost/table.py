"""Numbers in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str]
) -> str:
    """A table as text: the first column to the left, the others to the right.

    >>> print(table(("path", "n"), [("a", "1"), ("b", "20")], ("total", "21")))
    path    n
    ---------
    a       1
    b      20
    ---------
    total  21
    """
    together = [columns, *rows, total]
    widths = [max(map(len, column)) for column in zip(*together, strict=True)]
    lines = [aligned(row, widths) for row in together]
    ruler = "-" * max(map(len, lines))
    text = [lines[0], ruler, *lines[1:-1], ruler, lines[-1]]
    return "\n".join(line.rstrip() for line in text)


def aligned(row: Sequence[str], widths: Sequence[int], left: int = 1) -> str:
    """One line; the first `left` columns to the left."""
    cells = [
        cell.ljust(width) if place < left else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells)


def scaled(value: float) -> str:
    """A number with three digits and the unit's prefix.

    >>> scaled(1234567), scaled(0.00021), scaled(0), scaled(12)
    ('1.23 M', '210 u', '0 ', '12 ')
    """
    if not value:
        return "0 "
    units = {prefix: 10.0 ** (15 - 3 * i) for i, prefix in enumerate("PTGMk mun")}
    prefix = next((p for p, unit in units.items() if abs(value) >= unit * 0.9995), "n")
    return f"{value / units[prefix]:.3g} {prefix.strip()}"
