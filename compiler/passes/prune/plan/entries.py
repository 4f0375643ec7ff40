"""What a plan is made of, checked: axes, positions, shapes, and its JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dict
from typing import Any, TypeAlias

import numpy as np

from compiler.errors import PlanError
from compiler.passes.prune.plan.indices import read_indices

Shape: TypeAlias = tuple[int, ...]

Entry: TypeAlias = tuple[str, int, tuple[int, ...]]
"""A leaf's path, one of its axes, and the positions that go, sorted."""

FORMAT, VERSION = "mapping.prune", 1


def checked(
    path: str, axis: int, indices: str | Sequence[int], shapes: Dict[str, Shape]
) -> Entry:
    """An entry of a plan, whose positions may be written as text.

    Raises:
        PlanError: if it names no axis of a known shape, or no position of that axis,
            or the positions are not sorted or repeated.
    """
    axis = checked_axis(path, axis, shapes)
    size, where = shapes[path][axis], f"{path}, axis {axis}"
    if isinstance(indices, str):
        try:
            indices = read_indices(indices, size)
        except ValueError as error:
            raise PlanError(
                f"{where}: expected runs of positions such as '0-3,7': {error}. Write "
                "the plan with to_json."
            ) from error
    held = _positions(where, indices, size)
    steps = np.diff(held)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0))
        raise PlanError(
            f"{where}: expected sorted positions, each once, got {held[at]} before "
            f"{held[at + 1]}. Make the plan with Plan.of, which sorts them."
        )
    if not held.size:
        raise PlanError(
            f"{where}: expected positions that go, got none. Leave the axis out, or "
            "make the plan with Plan.of, which does."
        )
    return path, axis, tuple(held.tolist())


def checked_axis(path: str, axis: int, shapes: Dict[str, Shape]) -> int:
    """An axis of a leaf, counted from the front.

    Raises:
        PlanError: if the leaf's shape is missing, or has no such axis.
    """
    if path not in shapes:
        raise PlanError(
            f"{path}: expected its original shape among those given, got "
            f"{some(shapes)}. Give every leaf's shape that is cut."
        )
    rank = len(shapes[path])
    if not (isinstance(axis, int | np.integer) and -rank <= axis < rank):
        raise PlanError(
            f"{path}: expected an axis of its shape {shapes[path]}, got {axis!r}. Name "
            f"one from 0 to {rank - 1}."
        )
    return int(axis) % rank


def as_positions(where: str, indices: Any, size: int) -> list[int]:
    """Positions in any order, or a mask of them, as a sorted list of each once.

    Raises:
        PlanError: if a position is out of range, or a mask is not as long as the axis.
    """
    if np.asarray(indices).dtype != bool:
        return np.unique(_positions(where, indices, size)).tolist()
    if np.shape(indices) != (size,):
        raise PlanError(
            f"{where}: expected a mask of the shape ({size},) of the axis, got "
            f"{np.shape(indices)}. Give it that shape, or give positions."
        )
    return np.flatnonzero(indices).tolist()


def check_order(what: str, keys: Sequence[Any]) -> None:
    """Checks that the entries of a plan stand in order, each once.

    Raises:
        PlanError: naming the first that does not.
    """
    for one, two in itertools.pairwise(keys):
        if one >= two:
            raise PlanError(
                f"{what}: expected each once, sorted, got {one} before {two}. Make the "
                "plan with Plan.of, which sorts them."
            )


def read_leaves(text: str) -> dict[str, dict[str, Any]]:
    """The leaves in the JSON of a plan: {path: {"shape": ..., "removed": {axis: ...}}}.

    Raises:
        PlanError: if it is no JSON of a plan, or of a version that is not known.
    """
    try:
        held = json.loads(text)
    except ValueError as error:
        raise PlanError(
            f"plan: expected JSON that Plan.to_json wrote, got {text!r:.60} ({error})."
        ) from error
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise PlanError(
            f'plan: expected JSON with "format": "{FORMAT}", got {text:.60}. Write it '
            "with Plan.to_json."
        )
    if held.get("version") != VERSION:
        raise PlanError(
            f"plan: expected version {VERSION}, got {held.get('version')!r}. Read it "
            "with the release that wrote it, or install a newer one."
        )
    leaves = held.get("leaves")
    for path, leaf in leaves.items() if isinstance(leaves, dict) else [("plan", None)]:
        _check_leaf(path, leaf)
    return leaves


def some(names: Iterable[str]) -> str:
    """A few names, for messages."""
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more or "(none)"


def _check_leaf(path: str, leaf: Any) -> None:
    shape = leaf.get("shape") if isinstance(leaf, dict) else None
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise PlanError(
            f'{path}: expected {{"shape": [3, 4], "removed": {{"1": "0-1"}}}}, got '
            f"{json.dumps(leaf):.60}. Write the plan with to_json."
        )
    cut = leaf.get("removed", {})
    whole = isinstance(cut, dict) and all(axis.isdecimal() for axis in cut)
    if not whole or not all(isinstance(held, str) for held in cut.values()):
        raise PlanError(
            f'{path}: expected what is removed as {{"1": "0-3,7"}}, by axis, got '
            f"{json.dumps(cut):.60}. Write the plan with to_json."
        )


def _positions(where: str, indices: Any, size: int) -> np.ndarray:
    held = np.asarray(indices)
    if held.ndim != 1 or (held.size and not np.issubdtype(held.dtype, np.integer)):
        raise PlanError(
            f"{where}: expected a list of whole numbers, got "
            f"{held.dtype}{list(held.shape)}. Give the positions that go."
        )
    held = held.astype(np.int64)
    outside = held[(held < 0) | (held >= size)]
    if outside.size:
        raise PlanError(
            f"{where}: expected positions from 0 to {size - 1}, got {outside[0]}. Give "
            "the shape and the positions of the same leaf."
        )
    return held
