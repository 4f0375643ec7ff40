"""optax's optimizers under their own names, each a description by value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optax
import optax.contrib

from mapping.optimizers.optimizer import Optimizer
from mapping.registry import register


def stock(name: str, factory: Callable[..., Any]) -> Callable[..., Optimizer]:
    """Registers a factory of optax as an optimizer of that name.

    Args:
        name: optax's.
        factory: a function that makes a transform, such as `optax.adam`.

    >>> adam(1e-3)
    adam(learning_rate=0.001)
    """

    def describe(*arguments: Any, **options: Any) -> Optimizer:
        return Optimizer.of(factory, *arguments, **options)

    describe.__name__ = describe.__qualname__ = name
    describe.__doc__ = f"Describes `optax.{name}`; its arguments are the same."
    describe.__dict__["__signature__"] = inspect.signature(factory)
    return register("optimizer", name)(describe)


adabelief = stock("adabelief", optax.adabelief)
adafactor = stock("adafactor", optax.adafactor)
adagrad = stock("adagrad", optax.adagrad)
adam = stock("adam", optax.adam)
adamax = stock("adamax", optax.adamax)
adamw = stock("adamw", optax.adamw)
amsgrad = stock("amsgrad", optax.amsgrad)
lamb = stock("lamb", optax.lamb)
lars = stock("lars", optax.lars)
lion = stock("lion", optax.lion)
muon = stock("muon", optax.contrib.muon)
nadam = stock("nadam", optax.nadam)
nadamw = stock("nadamw", optax.nadamw)
radam = stock("radam", optax.radam)
rmsprop = stock("rmsprop", optax.rmsprop)
sgd = stock("sgd", optax.sgd)
