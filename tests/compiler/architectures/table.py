"""Writes the table: `python tests/compiler/architectures/table.py`.

Each row is computed: half of every group is removed at random, and the judges say how
far the result is from what they expect.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from architectures import ARCHITECTURES
from architectures.oracles import TOLERANCE, Case

TARGET = Path(__file__).parents[3] / "docs" / "pruning-architectures.md"

HEAD = f"""# Architectures that are pruned in the tests

Written by `python tests/compiler/architectures/table.py`. In each, half of the units
of every group are removed at random. *Groups* are those the compiler finds and those
written down by hand (the same axes of the same leaves). The errors are relative to the
largest number of an output, in float32 (at most {TOLERANCE:g} in the tests), against

- O1: the original function with zeros in the place of what was removed, for the groups
  where zeros are a removal (no norm, softmax or maximum over them),
- O2: the original function with neutral elements there (it shares the analysis),
- O3: the same architecture built at the widths that are left, with the sliced weights.

An empty cell: that judge does not apply.

| architecture | style | parameters | groups | O1 | O2 | O3 |
|---|---|---|---|---|---|---|
"""


def row(case: Case) -> str:
    """What the judges say of one architecture."""
    architecture = case.architecture
    style, _, name = architecture.name.partition(" ")
    shapes = dict(case.whole.shapes)
    before = sum(int(np.prod(shape)) for shape in shapes.values())
    after = sum(int(np.prod(case.whole.shape(path))) for path in shapes)
    groups = f"{len(case.structure.groups)} of {len(architecture.groups)}"
    errors = case.zeroed(), case.masked(), None
    if not architecture.unlike:
        errors = (*errors[:2], case.rebuilt())
    told = (spelled(error) for error in errors)
    cells = name, style, f"{before:,} → {after:,}", groups, *told
    return f"| {' | '.join(cells)} |"


def spelled(error: float | None) -> str:
    """An error as it is read."""
    if error is None:
        return ""
    return "0" if error == 0 else f"{error:.0e}"


def main() -> None:
    """Writes the table."""
    rows = [row(Case(architecture)) for architecture in ARCHITECTURES.values()]
    styles = {architecture.framework for architecture in ARCHITECTURES.values()}
    end = f"\n{len(rows)} architectures of {len(styles)} styles.\n"
    TARGET.write_text(HEAD + "\n".join(rows) + "\n" + end)


if __name__ == "__main__":
    main()
