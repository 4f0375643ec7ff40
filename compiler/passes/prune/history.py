"""What happened when a program was pruned in rounds: data, to be saved and gone on."""

from __future__ import annotations

import dataclasses
import json

from compiler.errors import PlanError
from compiler.passes.prune.plan import Plan
from mapping.core import register


@register("value", "prune_round")
@dataclasses.dataclass(frozen=True)
class Round:
    """What a program was after one round of pruning and training.

    Attributes:
        number: of the round; 0 is before all.
        ratio: the share that was to be gone by then.
        params: how many numbers its leaves hold.
        bytes: how many bytes those take.
        flops: of one call, for the sample's shapes; None if those have symbols.
        metric: what was measured, if anything was.
    """

    number: int
    ratio: float
    params: int
    bytes: int
    flops: int | None
    metric: float | None = None


@register("value", "prune_history")
@dataclasses.dataclass(frozen=True)
class History:
    """The rounds so far, and what is gone.

    Attributes:
        rounds: the first is the program before all.
        groups: names and sizes of the groups there were at first.
        plan: all that is gone, counted in the original program.

    >>> history = History((Round(0, 0.0, 100, 400, 200), Round(1, 0.5, 50, 200, 90)))
    >>> print(history)
    round  ratio  params  bytes  FLOPs  metric
    0      0.000     100    400    200  -
    1      0.500      50    200     90  -
    >>> History.from_json(history.to_json()) == history
    True
    """

    rounds: tuple[Round, ...] = ()
    groups: tuple[tuple[str, int], ...] = ()
    plan: Plan = dataclasses.field(default_factory=Plan)

    def then(self, done: Round, plan: Plan) -> History:
        """With one more round, whose plan counts in what was left before it."""
        return History((*self.rounds, done), self.groups, self.plan.then(plan))

    def to_json(self) -> str:
        """The history as text."""
        rounds = [dataclasses.asdict(one) for one in self.rounds]
        plan = json.loads(self.plan.to_json())
        return json.dumps({"rounds": rounds, "groups": self.groups, "plan": plan})

    @classmethod
    def from_json(cls, text: str) -> History:
        """Reads what [`History.to_json`][] wrote.

        Raises:
            PlanError: if it is none.
        """
        try:
            found = json.loads(text)
            rounds = tuple(Round(**one) for one in found["rounds"])
            groups = tuple((str(name), int(size)) for name, size in found["groups"])
            plan = json.dumps(found["plan"])
        except (ValueError, TypeError, KeyError) as error:
            raise PlanError(
                "expected a history that History.to_json wrote, got one that cannot "
                f"be read: {error}."
            ) from error
        return cls(rounds, groups, Plan.from_json(plan))

    def __str__(self) -> str:
        """A line for each round."""
        rows = [("round", "ratio", "params", "bytes", "FLOPs", "metric")]
        for one in self.rounds:
            counts = [f"{one.params:,}", f"{one.bytes:,}"]
            counts.append("-" if one.flops is None else f"{one.flops:,}")
            metric = "-" if one.metric is None else f"{one.metric:.4g}"
            rows.append((str(one.number), f"{one.ratio:.3f}", *counts, metric))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [c.rjust(n) for c, n in zip(row, widths, strict=True)]
            cells[0], cells[-1] = row[0].ljust(widths[0]), row[-1]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)
