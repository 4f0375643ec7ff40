"""Loose operations of one function, put into one box: an optimizer's, say."""

from __future__ import annotations

import re
from itertools import groupby

from compiler.inspect.view.boxes import Box

_LOOSE, _LEAST = 24, 4
_LINE = re.compile(r"^(?P<file>.*?):\d+(?::\d+)? \((?P<function>.*)\)$")


def fold_functions(root: Box) -> None:
    """Puts neighbouring operations from one function into a box.

    Only where there are so many beside the groups that nobody could tell them
    apart, and they come from more than one place.
    """
    for box in list(root.walk()):
        loose = [child for child in box.children if child.kind == "operation"]
        if len(loose) > _LOOSE:
            runs = [(k, list(run)) for k, run in groupby(box.children, _function)]
            grouped = any(child.kind == "group" for child in box.children)
            if grouped or len({key for key, _ in runs if key}) > 1:
                _fold(box, runs)


def _fold(box: Box, runs: list[tuple[tuple[str, str] | None, list[Box]]]) -> None:
    box.children = []
    for key, run in runs:
        into = box
        if key is not None and len(run) >= _LEAST:
            file, function = key
            into = box.add(Box("function", f"{function}()", box.path))
            into.note = f"of {file}"
        for child in run:
            into.add(child)


def _function(box: Box) -> tuple[str, str] | None:
    """The file and the outermost function an operation comes from."""
    found = _LINE.match(box.source) if box.kind == "operation" else None
    if found is None:
        return None
    file = re.split(r"[/\\]", found["file"])[-1]
    return file, found["function"].split(".<locals>")[0]
