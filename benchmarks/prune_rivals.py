"""The same micro-models pruned by Torch-Pruning and by this compiler, in a table.

    pip install -e ".[rivals]"
    python benchmarks/prune_rivals.py docs/pruning-rivals.md

The models are in `rivals/`, once in torch and once in flax. Ends with status 0 if
nothing the compiler pruned is wrong, broken or left as it is.
"""

import json
import subprocess
import sys
from pathlib import Path

import flax
import jax
from rivals.cases import CASES, EASY, TOLERANCE
from rivals.jax_side import outcomes

PAGE = """\
# Side by side with Torch-Pruning

Written by `python benchmarks/prune_rivals.py docs/pruning-rivals.md` with
{versions}, on a CPU.

{count} micro-models, once in torch and once in flax, from 1 to 5 layers each
(`benchmarks/rivals/`). The first {easy} are what both are made for; the others are what
Torch-Pruning's users report, and what they have in common with such code: channels that
are shuffled, cut, tied or multiplied with each other. A size that is written in a
model's code is changed by the compiler, as it is part of the program; torch runs the
code as it is.

- Torch-Pruning: `BasePruner(model, x, importance=MagnitudeImportance(p=2),
  pruning_ratio=0.5, ignored_layers=[model.out])`, and `num_heads=` where there are
  heads; for the two models of language models `prune_num_heads=True,
  prune_head_dims=False, head_pruning_ratio=0.5`, as in its example for those. All else
  is its default.
- This compiler: `program >> mc.prune.structured(0.5)`. It is told nothing.
- The judge, the same for both: the original model with zeros in the place of what was
  removed, found by looking up the numbers that are left. Where zeros are no removal,
  because the norm or mean of fewer numbers is another one, the model written at half
  the width, with the numbers that are left. Outputs are equal if they differ by
  {tolerance:g} of the largest number at most.
- Three random sets of weights decide what goes; the worst that happens is told.
  "Left" is the share of the model's numbers that is left then: less is more pruned.

| model | Torch-Pruning | left | this compiler | left |
|---|---|---|---|---|
{rows}

Pruned, and equal: Torch-Pruning {theirs} of {count}, this compiler {ours} of {count}.
"""


def told(outcome):
    """A verdict and the share that is left, as cells."""
    left, verdict = outcome
    return f"{verdict} | {left:.0%}" if left < 1 else f"{verdict} |"


def equal(outcomes):
    """How many are pruned, and equal."""
    return sum(verdict == "equal" for _, verdict in outcomes.values())


def main():
    """Prints the page, and writes it to a file that is named."""
    # A process of its own: the torch side forks, which JAX's threads would not survive.
    command, here = [sys.executable, "-m", "rivals.torch_side"], Path(__file__).parent
    printed = subprocess.check_output(command, cwd=here, text=True)
    theirs = json.loads(printed.splitlines()[-1])
    versions = (
        f"{theirs.pop('version')}, jax {jax.__version__}, flax {flax.__version__}"
    )
    ours = outcomes()
    rows = [f"| {name} | {told(theirs[name])} | {told(ours[name])} |" for name in CASES]
    page = PAGE.format(
        versions=versions,
        count=len(CASES),
        easy=EASY,
        tolerance=TOLERANCE,
        rows="\n".join(rows),
        theirs=equal(theirs),
        ours=equal(ours),
    )
    print(page)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page)
    return 0 if equal(ours) == len(CASES) else 1


if __name__ == "__main__":
    sys.exit(main())
