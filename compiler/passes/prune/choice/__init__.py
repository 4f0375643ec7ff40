"""What goes: rankings of units, and budgets that say how many."""

from compiler.passes.prune.choice.budget import Budget as Budget
from compiler.passes.prune.choice.budget import budget as budget
from compiler.passes.prune.choice.choose import Choice as Choice
from compiler.passes.prune.choice.choose import choose as choose
from compiler.passes.prune.choice.ranking import DEFAULT_KINDS as DEFAULT_KINDS
from compiler.passes.prune.choice.ranking import Ranking as Ranking
