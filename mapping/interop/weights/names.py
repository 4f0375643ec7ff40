"""From the names in one library to those in another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Dict
from typing import Any, TypeAlias

from mapping.errors import FieldError, UnknownPathError
from mapping.paths import nearest

Names: TypeAlias = (
    Dict[str | re.Pattern[str], str | None] | Callable[[str], str | None] | None
)
"""How names are changed; see [`Renaming`][]."""


class Renaming:
    """Changes the names of layers, and of single arrays.

    A dict is tried in its order, the first that fits counts. Its keys are

    - the whole name of an array (`cls_token`): the value is the array's new name;
    - the name of a layer, or of what it is in (`encoder`): what comes after stays.
      `*` stands for one step of the name; in the value, for the same again;
    - a compiled regular expression, for whole names of layers: the value is a
      template with `\\1`.

    A value of None leaves the array out; an empty one lifts it to the root. A
    function is given the name of a layer and returns the new one, or None. Names that
    nothing fits stay as they are. Separators (`.`, `/`, `_`) make no difference
    when what a name stands for is looked up.

    Args:
        names: the dict or the function.
        separator: what joins the steps of the names that are changed.

    >>> rename = Renaming({"features.*": "block_*", "head": None}, ".")
    >>> rename("features.0.conv", "weight"), rename("head", "bias")
    ((('block_0', 'conv'), None), None)
    """

    def __init__(self, names: Names, separator: str) -> None:
        if names is not None and not isinstance(names, Dict) and not callable(names):
            raise FieldError(
                f"names: expected a dict or a function, got {type(names).__name__}. "
                'Use {"features.*": "block_*"}.'
            )
        self._separator = separator
        self._rules: dict[Any, str | None] = {}
        self._function: Callable[[str], str | None] | None = None
        if isinstance(names, Dict):
            self._rules = dict(names)
        elif names is not None:
            self._function = names
        self._used: set[str | re.Pattern[str]] = set()

    def __call__(
        self, layer: str, leaf: str
    ) -> tuple[tuple[str, ...], str | None] | None:
        """Returns the layer's new steps and, where it was said, the array's name."""
        if self._function is not None:
            new = self._function(layer)
            return None if new is None else (_steps(new), None)
        whole = self._separator.join(part for part in (layer, leaf) if part)
        for rule, value in self._rules.items():
            if rule == whole:
                self._used.add(rule)
                steps = None if value is None else _steps(value)
                return None if steps is None else (steps[:-1], steps[-1])
            found = self._expand(rule, value, layer)
            if found is not None:
                self._used.add(rule)
                return None if value is None else (_steps(found), None)
        return _steps(layer.replace(self._separator, "/")), None

    def check_used(self, known: Iterable[str]) -> None:
        """Refuses a rule that fitted nothing: it is misspelt."""
        for rule in self._rules:
            if rule not in self._used:
                name = rule if isinstance(rule, str) else rule.pattern
                raise UnknownPathError(
                    f"names[{name!r}]: fits no array. Nearest: {nearest(name, known)}."
                )

    def _expand(
        self, rule: str | re.Pattern[str], value: str | None, layer: str
    ) -> str | None:
        if isinstance(rule, re.Pattern):
            match = rule.fullmatch(layer)
            return None if match is None else match.expand(value or "")
        dot = re.escape(self._separator)
        steps = re.escape(rule).replace(r"\*", f"([^{dot}]+)")
        match = re.fullmatch(f"{steps}(?:{dot}(?P<rest>.*))?", layer)
        if match is None:
            return None
        stars, rest = list(match.groups()[:-1]), match["rest"] or ""
        new = re.sub(r"\*", lambda _: stars.pop(0), value or "")
        return f"{new}/{rest.replace(self._separator, '/')}"


class Paths:
    """Finds a layer among known ones, whatever separates the steps of its name.

    >>> Paths([("block_0", "conv")]).find(("block", "0", "conv"))
    [('block_0', 'conv')]
    """

    def __init__(self, known: Iterable[tuple[str, ...]]) -> None:
        self._exact = set(known)
        self._loose: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for path in sorted(self._exact):
            self._loose.setdefault(_loose(path), []).append(path)

    def find(self, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Returns the layers that may be meant: one, none, or several."""
        if path in self._exact:
            return [path]
        return self._loose.get(_loose(path), [])


def _steps(path: str) -> tuple[str, ...]:
    return tuple(step for step in path.split("/") if step)


def _loose(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(step for step in re.split(r"[./_]", "/".join(path)) if step)
