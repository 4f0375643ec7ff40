"""The loss that brings a student close to its teacher, as a mapping."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.distill.kept import kept
from compiler.distill.match import BY_NUMBER, Match
from compiler.distill.measures import cross_entropy, soft_targets, weighted_mean
from compiler.distill.programs import Called, ProgramSide
from compiler.errors import DistillError
from compiler.graph import nest
from compiler.program import Program
from mapping.core import Context, Mapping, State, Variables, describe, fold_name


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Distillation(Mapping, by_identity=True):
    """What [`distill`][] returns.

    Attributes:
        teacher: what is imitated.
        student: what is trained.
        matches: by path of the student, what its value is compared with.
        kept: by path of the student, which of the teacher's features it has.
        logits: whether the outputs are compared.
        task: the loss of (prediction, target), each example's or their mean.
        temperature: of the soft targets.
        alpha: the share of the soft targets, where there are labels.
    """

    teacher: Any
    student: Any
    matches: Dict[str, Match]
    kept: Dict[str, np.ndarray]
    logits: bool = True
    task: Any = None
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        """Nothing is compared by value: it holds the teacher's arrays."""

    def init(self, key: jax.Array, *specs: Any) -> Variables:
        """Makes the variables for inputs, with or without labels last.

        The student starts from its own arrays; `params` are what is trained of them
        (`student`) and the projections, `state` the rest of the student's and the
        teacher's arrays.
        """
        inputs, _ = self._labelled(specs, Context())
        student = self.student.start(fold_name(key, "student"), *inputs)
        teacher = _frozen(self.teacher, self.teacher.start(key, *inputs))
        state = {"student": student.state, "teacher": teacher}
        projections = self._projections(key, student, teacher, inputs)
        params = {"student": student.params, "projections": projections}
        return Variables(
            {name: own for name, own in params.items() if own},
            {name: own for name, own in state.items() if own},
        )

    def variables(self, variables: Variables) -> Any:
        """The student's own variables, out of those of this mapping."""
        return self.student.own(variables.child("student"))

    def program(self, variables: Variables) -> Program:
        """The student as a program with what it has learned.

        Raises:
            DistillError: if it was none.
        """
        if not isinstance(self.student, ProgramSide):
            raise DistillError(
                "program: expected a student that is a program, got a mapping. Trace "
                "it: mc.trace(net, loss.variables(variables), *inputs)."
            )
        return self.student.program.with_variables(self.variables(variables))

    def _projections(
        self, key: jax.Array, student: Variables, teacher: Any, inputs: Sequence[Any]
    ) -> dict[str, Any]:
        """A kernel for every value that is narrower than the teacher's."""
        ctx = Context(jax.random.key(0), train=True)

        def run(student: Variables, teacher: Any, *inputs: Any) -> Any:
            own, other, _ = self._both(student, teacher, inputs, ctx)
            return own.found, other.found

        own, other = jax.eval_shape(run, student, teacher, *inputs)
        found = {}
        for name, match in self.matches.items():
            widths = match.widths(own[name], _spec(match, name, other), name)
            same = widths[0] == widths[1] or match.loss not in BY_NUMBER
            if not same and self._kept(name, widths) is None:
                drawn = jax.random.normal(fold_name(key, name), widths, jnp.float32)
                found[name] = {"kernel": drawn / np.sqrt(widths[0])}
        return found

    def _kept(self, name: str, widths: tuple[int, int]) -> np.ndarray | None:
        """Which of the teacher's features the student has, as far as it is known."""
        if name not in self.kept:
            own = self.student
            known = isinstance(own, ProgramSide)
            return kept(own.program, name, widths) if known else None
        indices = np.asarray(self.kept[name])
        fits = (
            len(indices) == widths[0] and np.isin(indices, np.arange(widths[1])).all()
        )
        if not fits:
            raise DistillError(
                f"{name}: expected {widths[0]} kept indices below {widths[1]}, got "
                f"{len(indices)}: {indices[:8].tolist()}."
            )
        return indices

    def apply(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[jax.Array, State]:
        """The loss of (*inputs) or (*inputs, labels), and the new state."""
        terms, state = self.terms(variables, *inputs, ctx=ctx)
        return sum(terms.values(), start=jnp.zeros((), jnp.float32)), state

    def terms(
        self, variables: Variables, *inputs: Any, ctx: Context
    ) -> tuple[dict[str, jax.Array], State]:
        """What the loss is the sum of, by name: `task`, `logits` and every path."""
        given, labels = self._labelled(inputs, ctx)
        weights = labels[1] if isinstance(labels, tuple) else None
        share = 1.0 if labels is None else self.alpha
        outputs, terms, state = self.compared(variables, given, ctx, share, weights)
        if labels is not None:
            task = self.task_loss(outputs, labels, ctx)
            terms = {"task": (1 - self.alpha) * task} | terms
        return terms, state

    def compared(
        self,
        variables: Variables,
        inputs: Sequence[Any],
        ctx: Context,
        share: float,
        weights: Any = None,
    ) -> tuple[Any, dict[str, jax.Array], State]:
        """The student's logits, the terms but that of the task, and the new state.

        Args:
            variables: of this mapping.
            inputs: without labels.
            ctx: of this mapping.
            share: what the soft targets are multiplied by.
            weights: of the examples, for the soft targets.
        """
        teacher = variables.state.get("teacher", {})
        own, other, state = self._both(variables.child("student"), teacher, inputs, ctx)
        terms = {}
        if self.logits:
            losses = self._soft(own.outputs, other.outputs, ctx)
            terms["logits"] = share * weighted_mean(losses, weights)
        for name, match in self.matches.items():
            pair = self._paired(match, name, own, other, variables)
            terms[name] = match.weight * match(*pair, name)
        new = dict(variables.state) | ({"student": state} if state else {})
        return own.outputs, terms, new

    def task_loss(self, outputs: Any, labels: Any, ctx: Context) -> jax.Array:
        """The loss of the student's logits and the labels."""
        target, weights = labels if isinstance(labels, tuple) else (labels, None)
        if self.task is None:
            return weighted_mean(_cross_entropy(outputs, target), weights)
        extra = () if weights is None else (weights,)
        if isinstance(self.task, Mapping):
            loss = self.task.apply(Variables(), outputs, target, *extra, ctx=ctx)[0]
        else:
            loss = self.task(outputs, target, *extra)
        return jnp.asarray(loss, jnp.float32).mean()

    def _both(
        self, student: Variables, teacher: Any, inputs: Sequence[Any], ctx: Context
    ) -> tuple[Called, Called, Any]:
        """What both give; nothing of the teacher is differentiated."""
        own = self.student(student, inputs, ctx.child("student"))
        fixed = Variables({}, jax.lax.stop_gradient(teacher))
        other = self.teacher(fixed, inputs, ctx.child("teacher"))
        outputs, found = jax.lax.stop_gradient((other.outputs, other.found))
        return own, Called(outputs, found, {}), own.state

    def _soft(self, student: Any, teacher: Any, ctx: Context) -> jax.Array:
        if student.shape != teacher.shape or not student.ndim:
            raise DistillError(
                f"{ctx.where}: expected logits of one shape, got {describe(student)} "
                f"of the student and {describe(teacher)} of the teacher. Name them "
                "with output=, or pass logits=False."
            )
        return soft_targets(student, teacher, self.temperature)

    def _paired(
        self, match: Match, name: str, own: Called, other: Called, variables: Variables
    ) -> tuple[Any, Any]:
        """The two values, of one width where the loss wants that."""
        student = own.found[name]
        teacher = match.chosen(other.found[match.path or name])
        widths = match.widths(student, teacher, name)
        if widths[0] == widths[1] or match.loss not in BY_NUMBER:
            return student, teacher
        indices = self._kept(name, widths)
        if indices is not None:
            return student, jnp.take(teacher, indices, axis=match.along)
        kernel = variables.params.get("projections", {}).get(name, {}).get("kernel")
        if kernel is None:
            raise DistillError(
                f"{name}: expected a projection from {widths[0]} to {widths[1]} "
                "features, found none. Pass the variables that init returned."
            )
        moved = jnp.moveaxis(student.astype(kernel.dtype), match.along, -1) @ kernel
        return jnp.moveaxis(moved, -1, match.along), teacher

    def _labelled(
        self, inputs: Sequence[Any], ctx: Context
    ) -> tuple[tuple[Any, ...], Any]:
        """The inputs, and the labels or None."""
        count = self.student.count
        count = self.teacher.count if count is None else count
        if count is None:
            count = len(inputs) - (self.task is not None)
        if len(inputs) not in (count, count + 1):
            raise DistillError(
                f"{ctx.where}: expected {count} inputs, or these and the labels, got "
                f"{len(inputs)}: {describe(list(inputs))}."
            )
        return tuple(inputs[:count]), (*inputs, None)[count]

    @functools.cached_property
    def model(self) -> Mapping:
        """A mapping of the inputs, for a loop that has models and losses apart.

        In training it returns the logits and what they cost but for the task; in
        inference the student's logits.
        """
        from compiler.distill.fitting import Model

        return Model(self)

    @functools.cached_property
    def objective(self) -> Mapping:
        """The loss of what [`model`][] returns, and the labels."""
        from compiler.distill.fitting import Objective

        return Objective(self)

    def __repr__(self) -> str:
        """What is compared."""
        names = ["logits"] * self.logits + list(self.matches)
        return f"Distillation({', '.join(names)})"


def _frozen(side: Any, variables: Variables) -> Any:
    """All of a teacher's arrays as one tree."""
    if isinstance(side, ProgramSide):
        return nest(side.values(variables))
    return {}


def _spec(match: Match, name: str, other: dict[str, Any]) -> Any:
    """The shape of what the teacher's value is compared as."""
    return jax.eval_shape(match.chosen, other[match.path or name])


def _cross_entropy(outputs: Any, target: Any) -> jax.Array:
    target = jnp.asarray(target)
    whole = jnp.issubdtype(target.dtype, jnp.integer)
    if target.shape != (outputs.shape[:-1] if whole else outputs.shape):
        raise DistillError(
            f"labels: expected classes (integers) or distributions that fit the logits "
            f"{describe(outputs)}, got {describe(target)}. Or pass task=."
        )
    return cross_entropy(outputs, target)
