"""Sealed folders: files beside a list of their hashes.

Nothing in a folder reaches a parser before its bytes have matched the list, and the
bytes that are checked are the bytes that are used. A folder appears whole or not
at all: it is written beside its place, flushed, and renamed. The seal tells damage
from what was written; it does not tell who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from compiler.errors import ArtifactError

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MAX_MANIFEST, _MAX_FILES = 1 << 20, 64


def write(path: str | Path, files: dict[str, bytes]) -> Path:
    """Writes a sealed folder, replacing an earlier one at the same path.

    Raises:
        ArtifactError: if something that is no sealed folder is in the way.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path / MANIFEST).is_file()):
        raise ArtifactError(
            f"{path}: expected a free path or a program saved before, found something "
            "else. Choose another path, or remove it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    listing = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    manifest = json.dumps({"format": 1, "files": listing}, indent=1).encode()
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        fresh.chmod(0o755)
        for name, data in {**files, MANIFEST: manifest}.items():
            _write_file(fresh / name, data)
        _flush(fresh)
        _swap(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _flush(path.parent)
    return path


def read(path: str | Path, limit: int = 1 << 36) -> dict[str, bytes]:
    """Reads a sealed folder and returns its files, each checked.

    Args:
        path: the folder.
        limit: bytes all files together may have.

    Raises:
        ArtifactError: if it is missing, incomplete, altered or malformed.
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(
            f"{path}: expected a folder written by save, got: {error.strerror}."
        ) from error
    try:
        listing = _listing(_read_file(folder, MANIFEST, _MAX_MANIFEST), limit)
        extra = sorted(set(os.listdir(folder)) - {*listing, MANIFEST})
        if extra:
            raise ArtifactError(f"files that are not in the manifest: {extra[:3]}")
        return {name: _checked(folder, name, entry) for name, entry in listing.items()}
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}. Save the program again.") from error
    finally:
        os.close(folder)


def _listing(raw: bytes, limit: int) -> dict[str, Any]:
    """Parses the manifest, trusting nothing in it."""
    try:
        manifest = json.loads(raw.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{MANIFEST}: is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise ArtifactError(f"{MANIFEST}: expected format 1")
    files = manifest.get("files")
    if not isinstance(files, dict) or not 1 <= len(files) <= _MAX_FILES:
        raise ArtifactError(f"{MANIFEST}: expected a list of files")
    for name, entry in files.items():
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise ArtifactError(f"{MANIFEST}: bad file name {name[:60]!r}")
        if not _well_formed(entry):
            raise ArtifactError(f"{MANIFEST}: bad entry for {name}")
    if sum(entry["size"] for entry in files.values()) > limit:
        raise ArtifactError(f"{MANIFEST}: files are larger than {limit} bytes")
    return files


def _well_formed(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    size, digest = entry.get("size"), entry.get("sha256")
    sized = type(size) is int and size >= 0
    return sized and isinstance(digest, str) and bool(_HASH.fullmatch(digest))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _checked(folder: int, name: str, entry: dict[str, Any]) -> bytes:
    data = _read_file(folder, name, entry["size"])
    if len(data) != entry["size"] or (
        hashlib.sha256(data).hexdigest() != entry["sha256"]
    ):
        raise ArtifactError(f"{name}: is not what was written (its hash differs)")
    return data


def _read_file(folder: int, name: str, limit: int) -> bytes:
    """Reads a regular file of the folder; no link is followed, no pipe waited for."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        raise ArtifactError(f"{name}: {error.strerror}") from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{name}: is not a regular file")
        if status.st_size > limit:
            raise ArtifactError(f"{name}: is larger than the manifest says")
        with os.fdopen(file, "rb", closefd=False) as opened:
            return opened.read(limit + 1)
    finally:
        os.close(file)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(fresh: Path, path: Path) -> None:
    """Puts the fresh folder in place; an old one leaves whole."""
    if not path.exists():
        fresh.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    try:
        path.rename(aside / path.name)
        try:
            fresh.rename(path)
        except OSError:
            (aside / path.name).rename(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
