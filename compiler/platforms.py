"""Platforms to lower and compile for, and JAX's cache of what was compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from compiler.errors import CompileError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What JAX lowers for on any machine."""


def device(platform: str) -> jax.Device | None:
    """A device of this platform, or None if this machine has none."""
    with contextlib.suppress(RuntimeError):
        return jax.devices(platform)[0]
    return None


def foreign(traced: jax.stages.Traced, platform: str) -> jax.stages.Lowered:
    """Lowers for a platform this machine does not have.

    Raises:
        CompileError: if there is no such platform, or no such lowering.
    """
    if platform not in PLATFORMS:
        raise CompileError(
            f"target: expected one of {', '.join(PLATFORMS)}, got {platform!r}. Leave "
            "it out to compile for this machine."
        )
    try:
        return traced.lower(lowering_platforms=(platform,))
    except Exception as error:
        raise CompileError(
            f"target: the program cannot be lowered for {platform}: {error}"
        ) from error


def compiled(
    lowered: jax.stages.Lowered, options: dict[str, Any]
) -> jax.stages.Compiled:
    """Compiles with these options of XLA.

    Raises:
        CompileError: with what XLA says.
    """
    try:
        return lowered.compile(compiler_options=options or None)
    except Exception as error:
        told = str(error).splitlines()[0]
        raise CompileError(
            f"compile: XLA refused the program{f' with {options}' if options else ''}: "
            f"{told.rstrip('.')}. Check the options' names and values."
        ) from error


@contextlib.contextmanager
def cached(folder: str | Path | None) -> Generator[None, None, None]:
    """JAX's persistent cache in a folder, for everything that is compiled inside."""
    if folder is None:
        yield
        return
    wanted = {
        "jax_compilation_cache_dir": str(folder),
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        _configure(wanted)
        yield
    finally:
        _configure(before)


def _configure(settings: Dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it remembers the folder it was made with
