"""Progress on a terminal; silence anywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[str], None]


@contextlib.contextmanager
def progress(title: str, total: int) -> Generator[Advance, None, None]:
    """Shows a bar of `total` steps while open; call what it yields after each.

    >>> with progress("training", 2) as advance:
    ...     advance("loss 0.5")
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, news="")
        yield lambda news: bar.update(task, advance=1, news=news)
