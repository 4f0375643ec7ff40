"""Sealed folders: damage is always told, and nothing else is touched."""

import hashlib
import json
import os
import random

import pytest

from compiler import sealed
from compiler.errors import ArtifactError

FILES = {"a.bin": b"abc" * 99, "b.json": b"{}" * 50}


@pytest.fixture
def folder(tmp_path):
    return sealed.write(tmp_path / "sealed", FILES)


def manifest(folder, **changes):
    data = json.loads((folder / sealed.MANIFEST).read_text())
    data.update(changes)
    (folder / sealed.MANIFEST).write_text(json.dumps(data))


def entry(size=5, digest="0" * 64):
    return {"size": size, "sha256": digest}


def test_what_was_written_is_read(folder):
    assert sealed.read(folder) == FILES


def test_every_flipped_bit_is_told(folder):
    draw = random.Random(0)
    for _ in range(400):
        name = draw.choice(sorted(FILES))
        data = bytearray(FILES[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=f"{name}: is not what was written"):
            sealed.read(folder)
        (folder / name).write_bytes(FILES[name])
    assert sealed.read(folder) == FILES


def test_no_flipped_bit_of_the_manifest_gives_other_bytes(folder):
    draw = random.Random(1)
    path = folder / sealed.MANIFEST
    good = path.read_bytes()
    told = 0
    for _ in range(400):
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            assert sealed.read(folder) == FILES
        except ArtifactError:
            told += 1
    assert told > 300


HOSTILE = {
    "no manifest": lambda f: (f / sealed.MANIFEST).unlink(),
    "empty manifest": lambda f: (f / sealed.MANIFEST).write_bytes(b""),
    "huge manifest": lambda f: (f / sealed.MANIFEST).write_bytes(b" " * (2 << 20)),
    "deep json": lambda f: (f / sealed.MANIFEST).write_bytes(b"[" * 200_000),
    "not utf-8": lambda f: (f / sealed.MANIFEST).write_bytes(b"\xff\xfe"),
    "a list": lambda f: (f / sealed.MANIFEST).write_bytes(b"[]"),
    "a key twice": lambda f: (f / sealed.MANIFEST).write_bytes(
        b'{"format":1,"files":{"a":{},"a":{}}}'
    ),
    "another format": lambda f: manifest(f, format=2),
    "no files": lambda f: manifest(f, files={}),
    "files a list": lambda f: manifest(f, files=["a.bin"]),
    "entry a list": lambda f: manifest(f, files={"a.bin": []}),
    "too many files": lambda f: manifest(
        f, files={f"f{i}": entry() for i in range(65)}
    ),
    "too large": lambda f: manifest(f, files={"a.bin": entry(1 << 40)}),
    "short hash": lambda f: manifest(f, files={"a.bin": entry(digest="0")}),
    "missing file": lambda f: (f / "a.bin").unlink(),
    "extra file": lambda f: (f / "evil.py").write_text("print()"),
    "extra folder": lambda f: (f / "sub").mkdir(),
    "truncated": lambda f: os.truncate(f / "a.bin", 5),
    "grown": lambda f: (f / "a.bin").write_bytes(FILES["a.bin"] + b"x"),
    "sparse terabyte": lambda f: os.truncate(f / "a.bin", 1 << 40),
}
for _size in (-1, 1.5, "5", None, True, 1 << 70):
    HOSTILE[f"size {_size}"] = lambda f, s=_size: manifest(f, files={"a.bin": entry(s)})
for _name in ("../x", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "-rf", ".hidden",
              "a" * 300, "\uff41", sealed.MANIFEST):  # fmt: skip
    HOSTILE[f"name {_name[:9]!r}"] = lambda f, n=_name: manifest(f, files={n: entry()})


def replaced(make):
    def prepare(folder):
        (folder / "a.bin").unlink()
        make(folder / "a.bin")

    return prepare


HOSTILE["a link"] = replaced(lambda p: p.symlink_to("/etc/passwd"))
HOSTILE["a dangling link"] = replaced(lambda p: p.symlink_to("/nowhere"))
HOSTILE["a pipe"] = replaced(os.mkfifo)
HOSTILE["a folder"] = replaced(os.mkdir)


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_folder_is_refused_cleanly(folder, attack):
    HOSTILE[attack](folder)
    with pytest.raises(ArtifactError, match="sealed"):
        sealed.read(folder)


def test_no_folder_is_told(tmp_path):
    with pytest.raises(ArtifactError, match="expected a folder written by save"):
        sealed.read(tmp_path / "nothing")


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_folder_whole(folder, failing, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = os if failing == "fsync" else sealed.Path
    monkeypatch.setattr(target, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        sealed.write(folder, {"a.bin": b"new"})
    monkeypatch.undo()
    assert sealed.read(folder) == FILES
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_the_hash_is_sha256(folder):
    listing = json.loads((folder / sealed.MANIFEST).read_text())["files"]
    want = hashlib.sha256(FILES["a.bin"]).hexdigest()
    assert listing["a.bin"] == {"size": len(FILES["a.bin"]), "sha256": want}
