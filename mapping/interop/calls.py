"""How foreign code is called: its flag for training, its key, its errors."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mapping.core import Context, describe
from mapping.errors import MappingError, MissingKeyError
from mapping.foreign import lenient_promotion

TRAIN_FLAGS = ("train", "training", "is_training")
"""Arguments by which a function is told that it trains."""

INFERENCE_FLAGS = ("deterministic", "use_running_average", "inference")
"""Arguments by which a function is told that it does not."""

KEYS = ("key", "rng")
"""Arguments by which a function is given a random key."""

Result = TypeVar("Result")


def accepted(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a function by name; none where it does not say.

    >>> list(accepted(lambda x, key: x))
    ['x', 'key']
    """
    own = isinstance(function, type)  # a metaclass may hide what __init__ takes
    if own and function.__init__ is object.__init__:
        return {}
    try:
        signature = inspect.signature(function.__init__ if own else function)
    except (TypeError, ValueError):
        return {}
    return dict([*signature.parameters.items()][int(own) :])


def mode(arguments: Iterable[str], train: bool) -> dict[str, bool]:
    """Sets whichever flags among `arguments` tell training from inference.

    >>> mode(["x", "is_training"], train=True)
    {'is_training': True}
    """
    known = set(arguments)
    flags = {name: train for name in TRAIN_FLAGS if name in known}
    return flags | {name: not train for name in INFERENCE_FLAGS if name in known}


def keyed(
    run: Callable[[Any], Result], ctx: Context, kind: str, inputs: tuple[Any, ...]
) -> Result:
    """Returns `run(key)`, or `run(None)` where the context has no key.

    Foreign code says in many ways that it wants a key; what would have run with one
    wanted one. Its other errors are the user's own and are left as they are, with a
    note that says where they happened.

    Raises:
        MissingKeyError: if a key was needed.
    """
    with lenient_promotion():
        try:
            return run(None if ctx.key is None else ctx.rng())
        except MappingError:
            raise
        except Exception as error:
            if ctx.key is None and _runs(run, True) and not _runs(run, False):
                raise MissingKeyError(
                    f"{ctx.where} ({kind}): needs a random key, got none. Pass "
                    f"ctx=Context(key=jax.random.key(0), train={ctx.train})."
                ) from error
            error.add_note(f"in {ctx.where} ({kind}), given {describe(inputs)}")
            raise


def once_each(make: Callable[[Any], Result]) -> Callable[[Any], Result]:
    """Remembers what `make` made of each mapping, for as long as the mapping lives."""
    memory: weakref.WeakKeyDictionary[Any, Result] = weakref.WeakKeyDictionary()

    @functools.wraps(make)
    def remembered(mapping: Any) -> Result:
        if mapping not in memory:
            memory[mapping] = make(mapping)
        return memory[mapping]

    return remembered


def placeholders(specs: Any) -> Any:
    """Returns arrays as they are, and zeros where there are only shapes."""

    def one(spec: Any) -> Any:
        if isinstance(spec, jax.ShapeDtypeStruct):
            return jnp.zeros(spec.shape, spec.dtype)
        return spec

    return jax.tree.map(one, specs)


def _runs(run: Callable[[Any], Any], with_key: bool) -> bool:
    try:
        jax.eval_shape(run, jax.random.key(0) if with_key else None)
    except Exception:
        return False
    return True
