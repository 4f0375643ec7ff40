"""Leaves with many zeros: fewer bytes on disk, the same bits when they come back."""

import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import compiler as mc
from compiler import packed
from compiler.errors import ArtifactError
from compiler.passes.prune.masks import magnitude

DTYPES = ["float32", "float16", "bfloat16", "float64", "int8", "uint8", "int4"]
DTYPES += ["float8_e4m3fn", "int32", "complex64", "bool"]


def sparse(size, share, dtype="float32", seed=0):
    """An array of which this share is zero, the rest in any bits."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = random.integers(-100, 100, size).astype(np.float32)
    values[random.random(size) < share] = 0
    return values.astype(dtype)


def size(parts):
    return sum(part.nbytes for part in parts.values())


def kind(parts):
    return next(iter(parts)).split("/")[0]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 3000),
    st.sampled_from([0.0, 0.4, 0.9, 0.995, 1.0]),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_what_is_packed_comes_back_bit_for_bit_and_is_smaller(n, share, dtype, seed):
    array = sparse(n, share, dtype, seed)
    parts = packed.pack(array)
    if parts is None:
        return
    again = packed.unpack(parts, array.shape, array.dtype)
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()
    assert size(parts) < array.nbytes


def test_negative_zero_and_every_nan_are_kept():
    array = np.zeros((64, 64), np.float32)
    bits = array.view(np.uint32)
    bits[0, :3] = 0x80000000, 0x7FC00001, 0xFFC12345
    again = packed.unpack(packed.pack(array), array.shape, array.dtype)
    assert np.array_equal(again.view(np.uint32), bits)


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("bfloat16", 16)])
def test_a_bitmask_takes_a_bit_for_each_number_and_what_is_not_zero(share, dtype, bits):
    array = sparse(1 << 16, share, dtype)
    exact = np.count_nonzero(array) / array.size + 1 / bits
    assert size(packed.pack(array)) / array.nbytes <= exact
    if share < 0.8:
        assert kind(packed.pack(array)) == "bitmask"
        assert size(packed.pack(array)) / array.nbytes == exact


def test_few_numbers_are_stored_by_the_gaps_between_them():
    array = sparse(1 << 16, 0.99)
    parts = packed.pack(array)
    assert kind(parts) == "gaps"
    stored = parts["gaps/gaps"].size
    # A gap above 255 takes a word of zero more: here 8% of them.
    assert stored <= 1.12 * np.count_nonzero(array)
    assert size(parts) <= 5 * stored


def test_gaps_of_any_length_come_back():
    for gap in (0, 1, 254, 255, 256, 257, 511, 512, 513, 40000):
        array = np.zeros(2 * gap + 900, np.float32)
        array[[0, 1, gap + 1, 2 * gap + 2]] = 1.0
        parts = packed.pack(array)
        assert kind(parts) == "gaps"
        again = packed.unpack(parts, array.shape, array.dtype)
        assert np.array_equal(again, array)


def test_codes_of_four_bits_are_told_apart_within_a_byte():
    random = np.random.default_rng(0)
    codes = random.integers(1, 16, 1 << 14).astype(np.uint8)
    codes[random.random(codes.size) < 0.5] = 0
    array = codes[::2] | codes[1::2] << 4
    parts = packed.pack(array)
    assert kind(parts) == "nibbles"
    assert size(parts) / array.nbytes == pytest.approx(0.5 + 0.25, abs=0.02)
    assert np.array_equal(packed.unpack(parts, array.shape, array.dtype), array)


def test_booleans_take_a_bit_each():
    mask = sparse(4096, 0.5, "bool").reshape(64, 64)
    assert size(packed.pack(mask)) == 4096 // 8
    again = packed.unpack(packed.pack(mask), mask.shape, mask.dtype)
    assert np.array_equal(again, mask)


def test_what_would_not_get_smaller_stays_as_it_is():
    assert packed.pack(np.ones(10000, np.float32)) is None
    assert packed.pack(np.zeros(8, np.float32)) is None
    assert packed.pack(np.zeros((0, 4), np.float32)) is None
    assert packed.pack(np.zeros(100, np.complex128)) is None
    assert packed.pack(sparse(4096, 0.01)) is None


GAPS = packed.pack(sparse(4096, 0.97))
MASKED = packed.pack(sparse(4096, 0.5))
NIBBLES = {"nibbles/bitmask": np.zeros(8, np.uint8)}
U8 = np.zeros(9, np.uint8)


@pytest.mark.parametrize(
    ("parts", "shape", "dtype", "match"),
    [
        (GAPS, (4097,), "float32", "other than 4097 words"),
        (GAPS, (1 << 60,), "float32", "other than"),
        (MASKED, (4000,), "float32", "512 bytes of bits, for 4000 numbers"),
        (MASKED, (1 << 60,), "float32", "bytes of bits"),
        (MASKED, (4096,), "float16", "expected flat parts"),
        (MASKED, (-4096,), "float32", "cannot be stored packed"),
        (MASKED, (4096,), "complex128", "cannot be stored packed"),
        (MASKED | GAPS, (4096,), "float32", "the parts of one array"),
        ({"zip/bomb": U8}, (72,), "uint8", "the parts of one array"),
        ({"gaps/gaps": U8}, (72,), "uint8", "expected flat parts"),
        ({"gaps/gaps": U8, "gaps/values": U8}, (8,), "uint8", "gaps of an array"),
        (
            MASKED | {"bitmask/values": np.ones(3, np.uint32)},
            (4096,),
            "float32",
            "other than 3 values",
        ),
        (NIBBLES | {"nibbles/values": U8}, (32,), "uint8", "other than 18 nibbles"),
        (NIBBLES | {"nibbles/values": U8.astype("uint32")}, (9,), "f4", "are no words"),
        ({"bits/bits": U8}, (72,), "uint8", "cannot be those of uint8"),
        ({"bits/bits": U8}, (99,), "bool", "9 bytes of bits, for 99"),
        ({"bits/bits": U8.reshape(3, 3)}, (72,), "bool", "expected flat parts"),
    ],
)
def test_parts_of_another_array_are_refused(parts, shape, dtype, match):
    with pytest.raises(ValueError, match=match):
        packed.unpack(parts, shape, dtype)


def program_of(variables):
    def function(v, x):
        kernel = v["kernel"].astype(jnp.float32)
        return x @ jnp.where(v["mask"], kernel, 0.0) + v["bias"][None]

    return mc.trace(function, variables, jnp.ones((2, 64)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    kernel = jax.random.normal(jax.random.key(0), (64, 64), jnp.bfloat16)
    variables = {
        "kernel": kernel,
        "mask": jnp.arange(64)[:, None] < jnp.arange(64)[None],
        "bias": jnp.arange(64.0),
    }
    program = program_of(variables) >> magnitude(0.5)
    return program, program.save(tmp_path_factory.mktemp("packed") / "small")


def test_a_pruned_program_is_smaller_on_disk_and_loads_back_the_same(saved):
    program, folder = saved
    dense = safetensors.numpy.load_file(folder / "variables.safetensors")
    parts = safetensors.numpy.load_file(folder / "packed.safetensors")
    assert set(dense) == {"bias"}
    assert set(parts) == {
        "kernel/bitmask/bitmask",
        "kernel/bitmask/values",
        "mask/bits/bits",
    }
    assert size(parts) == 4096 // 8 + 2048 * 2 + 4096 // 8
    loaded = mc.load(folder)
    for old, new in zip(program.values, loaded.values, strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    x = jnp.ones((5, 64))
    np.testing.assert_array_equal(loaded(x), program(x))


def test_a_program_without_zeros_is_saved_as_it_was_before(tmp_path):
    program = mc.trace(lambda w, x: x @ w, jnp.ones((64, 64)), jnp.ones((2, 64)))
    folder = program.save(tmp_path / "dense")
    assert not (folder / "packed.safetensors").exists()
    loaded = mc.load(folder)
    np.testing.assert_array_equal(loaded.values[0], program.values[0])


def forged(saved, folder, change):
    """A copy of what was saved with other packed parts, its seal made anew."""
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = json.loads((folder / "program.json").read_text())
    parts = safetensors.numpy.load_file(folder / "packed.safetensors")
    card, parts = change(card, dict(parts))
    made = {
        "program.json": json.dumps(card).encode(),
        "packed.safetensors": safetensors.numpy.save(parts),
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, data in made.items():
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][name] = {"size": len(data), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def without(card, parts):
    return card, {"other/bits/bits": parts["mask/bits/bits"]}


def half(card, parts):
    del parts["kernel/bitmask/values"]
    return card, parts


def bomb(card, parts):
    leaves = [[path, [1 << 40], d] for path, _, d in card["leaves"]]
    return card | {"leaves": leaves}, parts


def many(card, parts):
    return card | {"leaves": card["leaves"] * 1000}, parts


@pytest.mark.parametrize("change", [without, half, bomb, many])
def test_forged_parts_are_refused_before_anything_is_made_of_them(
    saved, tmp_path, change
):
    forgery = forged(saved[1], tmp_path / "forged", change)
    with pytest.raises(ArtifactError, match="cannot be read"):
        mc.load(forgery)


def test_damage_is_told_by_the_seal(saved, tmp_path):
    copy = forged(saved[1], tmp_path / "copy", lambda card, parts: (card, parts))
    assert mc.load(copy).graph.paths == saved[0].graph.paths
    file = copy / "packed.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"packed\.safetensors"):
        mc.load(copy)
