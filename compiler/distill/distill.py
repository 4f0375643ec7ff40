"""From a teacher and a student to a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.distill.distillation import Distillation
from compiler.distill.match import Match
from compiler.distill.sides import side
from compiler.errors import DistillError


def distill(
    teacher: Any,
    student: Any,
    *,
    logits: bool = True,
    features: Any = (),
    attention: Any = (),
    temperature: float = 4.0,
    alpha: float = 0.9,
    task: Any = None,
    kept: Dict[str, Any] | None = None,
    train: Sequence[str] | None = None,
    output: str | tuple[str | None, str | None] | None = None,
) -> Distillation:
    r"""A loss that brings a student close to its teacher, after pruning or rounding.

    $$ \ell = (1 - \alpha)\, \ell_{\text{task}}(z_s, y)
       + \alpha\, T^2 \, \mathrm{KL}(\mathrm{softmax}(z_t / T)
         \,\|\, \mathrm{softmax}(z_s / T)) + \sum_k w_k \ell_k(s_k, t_k) $$

    the mean over examples, for logits $z$ and values $s_k$, $t_k$ inside of the two,
    by path. Without labels there is no task and $\alpha$ counts as 1. Hinton, Vinyals &
    Dean, 2015, https://arxiv.org/abs/1503.02531.

    The loss is a mapping of (*inputs, labels), or (*inputs): `init` gives params
    (`student`, and `projections` where features are narrower than the teacher's and it
    is not known which were kept) and state (the rest of the student's arrays, and the
    teacher's, which stay as they are and get no gradient). Labels are classes or
    distributions, or a tuple with weights of the examples, >= 0. A student that
    was traced in training returns its statistics, moved, in the state; a random key
    that it takes as its last input, or that it was traced with, is the context's.
    Nothing of a student that is a program is trained but floating leaves, and of those
    neither `state/` nor `batch_stats/` nor what it returns, moved.

    Args:
        teacher: a program; or a function of the inputs, where logits are enough.
        student: a program; or a mapping, whose `init` is then called.
        logits: whether the outputs are compared.
        features: paths in the student (as [`tap`][] takes them); or a dict from these
            to paths in the teacher, or to a [`Match`][] with a loss and a weight.
        attention: the same, of attention probabilities (`path` means `path:softmax`).
        temperature: $T > 0$.
        alpha: in [0, 1].
        task: a loss of (prediction, target); by default the cross-entropy.
        kept: by path of the student, which of the teacher's features it still has. By
            default what its history of pruning tells.
        train: globs of the student's leaves that are trained.
        output: the path of the logits among the outputs, where there are several; or a
            pair of teacher's and student's.

    Raises:
        DistillError: if one of them is no program, or they do not fit each other.
        UnknownPathError: if a path names nothing.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> from mapping.core import Context
    >>> x = jax.random.normal(jax.random.key(0), (8, 4))
    >>> net = lambda w, x: jnp.tanh(x @ w["hidden"]["kernel"]) @ w["head"]["kernel"]
    >>> weights = {"hidden": {"kernel": jnp.eye(4)}, "head": {"kernel": jnp.eye(4)}}
    >>> teacher = mc.trace(net, weights, x)
    >>> student = teacher >> mc.quantize.weights("int8", rules={"head": "int4"})
    >>> loss = distill(teacher, teacher, features=["hidden"])
    >>> variables = loss.init(jax.random.key(0), x)
    >>> float(loss.apply(variables, x, ctx=Context())[0])
    0.0
    """
    _check(temperature, alpha)
    matches = _matches(features, "mse", "") | _matches(attention, "rows", ":softmax")
    named = output if isinstance(output, tuple) else (output, output)
    theirs = [match.path or name for name, match in matches.items()]
    return Distillation(
        teacher=side(teacher, theirs, named[0], None, "teacher"),
        student=side(student, list(matches), named[1], train, "student"),
        matches=matches,
        kept={path: np.asarray(own) for path, own in (kept or {}).items()},
        logits=logits,
        task=task,
        temperature=float(temperature),
        alpha=float(alpha),
    )


def _check(temperature: float, alpha: float) -> None:
    if not 0 < temperature < np.inf:
        raise DistillError(f"temperature: expected a number > 0, got {temperature!r}.")
    if not 0 <= alpha <= 1:
        raise DistillError(f"alpha: expected a share in [0, 1], got {alpha!r}.")


def _matches(given: Any, loss: str, end: str) -> dict[str, Match]:
    """What is compared, by path of the student."""
    if isinstance(given, str):
        given = (given,)
    pairs = given if isinstance(given, Dict) else dict.fromkeys(given)
    found = {}
    for path, what in pairs.items():
        match = what if isinstance(what, Match) else Match(what, loss)
        other = None if match.path is None else _ended(match.path, end)
        found[_ended(path, end)] = dataclasses.replace(match, path=other)
    return found


def _ended(path: str, end: str) -> str:
    return path if ":" in path else path + end
