"""How an intermediate output travels to the one who wants it.

`call` puts it into the new state of its mapping, under a key that no name can be:
the state is the one wire that every composite passes up already, through loops and
batches alike. `Capture` takes it out again.
"""

from __future__ import annotations

from typing import Any

from mapping.context import State

CAPTURED = ""
"""The key, within a mapping's new state, of its own captured output."""


def split_captured(state: State) -> tuple[State, State]:
    """Parts a new state into the state proper and what was captured.

    >>> split_captured({"norm": {"mean": 1.0, "": 2.0}, "relu": {"": 3.0}})
    ({'norm': {'mean': 1.0}}, {'norm': {'': 2.0}, 'relu': {'': 3.0}})
    """
    proper, seen = {}, {}
    for name, value in state.items():
        if name == CAPTURED:
            seen[name] = value
            continue
        if not isinstance(value, dict):
            proper[name] = value
            continue
        own, found = split_captured(value)
        if own or not found:
            proper[name] = own
        if found:
            seen[name] = found
    return proper, seen


def join_captured(state: State, seen: State) -> State:
    """Puts what was captured back into a state.

    >>> join_captured({"norm": {"mean": 1.0}}, {"norm": {"": 2.0}})
    {'norm': {'mean': 1.0, '': 2.0}}
    """
    joined = dict(state)
    for name, value in seen.items():
        nested = isinstance(value, dict) and isinstance(joined.get(name), dict)
        joined[name] = join_captured(joined[name], value) if nested else value
    return joined


def captured_by_path(seen: State, path: str = "") -> dict[str, Any]:
    """Lists what was captured by path.

    >>> captured_by_path({"encoder": {"relu": {"": 3.0}}})
    {'encoder/relu': 3.0}
    """
    found = {}
    for name, value in seen.items():
        if name == CAPTURED:
            found[path] = value
        else:
            found |= captured_by_path(value, f"{path}/{name}".lstrip("/"))
    return found
