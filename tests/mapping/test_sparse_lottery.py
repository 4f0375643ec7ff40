"""The search for tickets, on training that can be followed by hand."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mapping import leaf_paths, sparse
from mapping.errors import DataError, FieldError, UnknownPathError
from mapping.sparse import Lottery, Trained, apply_masks, lottery

DRAW = np.random.default_rng(0)
AIM = {
    "a": {"kernel": DRAW.normal(size=(6, 5)).astype(np.float32)},
    "b": {"kernel": DRAW.normal(size=(5, 4)).astype(np.float32)},
}
START = {
    "a": {"kernel": np.full((6, 5), 0.5, np.float32), "bias": np.ones(5, np.float32)},
    "b": {"kernel": np.full((5, 4), 0.5, np.float32), "bias": np.ones(4, np.float32)},
}
SIZES = {"a/kernel": 30, "b/kernel": 20}
SEEN = []


def train(params, masks, key):
    """Reaches the aim wherever the mask lets it."""
    SEEN.append((params, masks, jax.random.key_data(key).tolist()))
    trained = {name: {**params[name], **AIM[name]} for name in params}
    return apply_masks(trained, masks)


def evaluate(params):
    """How much of the aim is reached."""
    leaves = [(params[name]["kernel"], AIM[name]["kernel"]) for name in AIM]
    missed = sum(float(np.square(w - aim).sum()) for w, aim in leaves)
    return 1 - missed / sum(float(np.square(aim).sum()) for _, aim in leaves)


def search(**options):
    SEEN.clear()
    options = {"density": 0.1, "rounds": 4} | options
    return lottery(train, START, evaluate=evaluate, **options)


def test_each_round_keeps_the_largest_of_what_the_last_one_trained():
    found = search()
    flat = np.concatenate([abs(AIM[name]["kernel"]).reshape(-1) for name in AIM])
    for number, row in enumerate(found.rounds):
        kept = round(50 * 0.1 ** (number / 4))
        assert row.density == kept / 50
        threshold = np.sort(flat)[-kept]
        for path, mask in found.masks[number].items():
            aim = leaf_paths(AIM)[path]
            np.testing.assert_array_equal(mask, abs(aim) >= threshold)
            assert number == 0 or (mask <= found.masks[number - 1][path]).all()
    assert found.rounds[0].score == 1.0
    assert all(row.control < row.score for row in found.rounds[1:])


def test_a_control_has_as_many_weights_in_every_leaf_and_the_same_start():
    found = search(distribution=sparse.erk())
    assert len(SEEN) == 1 + 2 * 4
    for number in range(1, 5):
        (one, masks, key), (other, random, another) = SEEN[2 * number - 1 :][:2]
        assert key != another
        for path, size in SIZES.items():
            assert masks[path].sum() == random[path].sum()
            for params, mask in ((one, masks[path]), (other, random[path])):
                leaf = leaf_paths(params)[path]
                np.testing.assert_array_equal(leaf, np.where(mask, 0.5, 0))
            assert mask.size == size
        assert any((masks[path] != random[path]).any() for path in SIZES)
    kept = {p: mask.sum() / SIZES[p] for p, mask in found.masks[2].items()}
    assert kept["b/kernel"] > kept["a/kernel"]


def test_controls_keep_the_pattern():
    search(density=0.5, rounds=1, pattern=sparse.NOfM(1, 2, -1),
           distribution=sparse.uniform())  # fmt: skip
    for _, masks, _ in SEEN[1:]:
        assert (masks["b/kernel"].reshape(5, 2, 2).sum(2) == 1).all()
        assert (masks["a/kernel"].reshape(6, 5).sum(1) == 3).all()  # 2 + 2 + 1


def test_tickets_are_rewound_to_the_early_state_of_the_dense_run():
    early = jax.tree.map(lambda leaf: leaf + 1, START)

    def run(params, masks, key):
        return Trained(train(params, masks, key), early)

    SEEN.clear()
    found = lottery(run, START, evaluate=evaluate, density=0.2, rounds=1)
    np.testing.assert_array_equal(leaf_paths(SEEN[0][0])["a/kernel"], 0.5)
    for params, masks, _ in SEEN[1:]:
        leaf = np.asarray(params["a"]["kernel"])
        np.testing.assert_array_equal(leaf, np.where(masks["a/kernel"], 1.5, 0))
        np.testing.assert_array_equal(params["a"]["bias"], 2.0)
    ticket = found.ticket(START, 1)
    np.testing.assert_array_equal(ticket["a"]["kernel"], SEEN[1][0]["a"]["kernel"])
    assert sparse.sparsity(ticket)["a/kernel"] > 0


def test_a_search_goes_on_from_what_was_saved():
    whole = search()
    saved = []
    part = search(rounds=4, log=saved.append)
    assert [len(each.rounds) for each in saved] == [1, 2, 3, 4, 5]
    file = io.BytesIO()
    np.savez(file, **saved[2].arrays())
    file.seek(0)
    resumed = search(resume=Lottery.of(np.load(file)))
    assert len(SEEN) == 2 * 2
    for found in (part, resumed):
        assert found.rounds == whole.rounds
        assert str(found) == str(whole)
        for one, other in zip(found.masks, whole.masks, strict=True):
            assert all((one[path] == other[path]).all() for path in SIZES)
    search(resume=whole)
    assert SEEN == []


def test_the_winner_is_the_sparsest_that_is_near_enough():
    found = search(control=False)
    scores = [row.score for row in found.rounds]
    assert found.rounds[-1].control is None
    assert found.winner(1 - scores[2] + 1e-6) == 2
    assert found.winner(0.0) == 0
    assert found.winner(1.0) == 4


def test_half_precision_is_searched_too():
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), START)
    found = lottery(
        lambda params, masks, key: params,
        start,
        evaluate=lambda params: 1.0,
        density=0.5,
        rounds=1,
    )
    assert found.ticket(start, 1)["a"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"density": 0}, FieldError, r"^lottery\.density: expected a share above 0"),
        ({"density": 2}, FieldError, r"^lottery\.density: .*0 to 1"),
        ({"rounds": 0}, FieldError, r"^lottery\.rounds: "),
        ({"but": ("c/*",)}, UnknownPathError, r"^lottery: 'c/\*' names none"),
    ],
)
def test_what_makes_no_search_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        search(**options)


def test_another_search_is_not_resumed():
    found = search()
    with pytest.raises(DataError, match=r"^lottery\.resume: expected round 1 to keep"):
        search(resume=found, density=0.5)
    with pytest.raises(DataError, match=r"of 1 leaves, got .* of 2"):
        search(resume=found, but=("b/*",))
    with pytest.raises(UnknownPathError, match=r"^kernel: none of 4 leaves"):
        found.ticket({"kernel": np.ones(2)})
