import pytest
import torch

from recexp.errors import RecexpError
from recexp.evaluation import ranks
from recexp.evaluation.ranks import candidate_ranks, full_ranks


def flat(seen_BM):
    """Rows and items, as ``full_ranks`` takes them."""
    row, column = (seen_BM > 0).nonzero(as_tuple=True)
    return row, seen_BM[row, column]


def scores_with_ties(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6, (rows, columns), generator=generator).float() / 7


def by_hand(target, others):
    return sum(s > target for s in others), sum(s == target for s in others)


@pytest.mark.parametrize("columns", [1, 2, 20])
def test_candidate_ranks_against_a_count(columns):
    scores = scores_with_ties(40, columns, seed=columns)
    better, tied = candidate_ranks(scores)
    assert [(int(b), int(t)) for b, t in zip(better, tied, strict=True)] == [
        by_hand(r[0], r[1:]) for r in scores.tolist()
    ]
    assert better.dtype == tied.dtype == torch.int64


def test_order_of_candidates_does_not_matter():
    scores = scores_with_ties(30, 25, seed=0)
    shuffled = torch.cat([scores[:, :1], scores[:, 1:][:, torch.randperm(24)]], dim=1)
    for one, other in zip(candidate_ranks(scores), candidate_ranks(shuffled), strict=True):
        assert torch.equal(one, other)


@pytest.fixture(params=["one block", "blocks of three rows", "blocks of a row", "long rows"])
def counting(request, monkeypatch):
    """The ways to count: blocks of the table at a time, or all of it in integers."""
    if request.param == "long rows":
        monkeypatch.setattr(ranks, "_EXACT_IN_FLOAT32", 15)
    else:
        size = {"one block": 2**18, "blocks of three rows": 59, "blocks of a row": 1}
        monkeypatch.setattr(ranks, "_BLOCK_SIZE", size[request.param])


@pytest.mark.usefixtures("counting")
def test_full_ranks_against_a_count():
    n_items = 15
    scores = scores_with_ties(60, n_items, seed=1)
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(1, n_items + 1, (60,), generator=generator)
    seen = torch.randint(
        0, n_items + 1, (60, 9), generator=generator
    )  # repeats, padding, and at times the target
    seen[0] = 0
    assert (seen == target[:, None]).any()
    assert (seen.sort(1).values.diff(dim=1) == 0).any()
    for removed in (None, seen):
        better, tied, candidates = full_ranks(
            scores, target, None if removed is None else flat(removed)
        )
        for row in range(60):
            gone = set() if removed is None else set(removed[row].tolist())
            others = [i for i in range(1, n_items + 1) if i != target[row] and i not in gone]
            expected = by_hand(scores[row, target[row] - 1], [scores[row, i - 1] for i in others])
            assert (int(better[row]), int(tied[row])) == expected
            assert candidates[row] == len(others) + 1


def test_full_ranks_of_all_items_as_candidates_agree():
    scores = scores_with_ties(20, 12, seed=3)
    better, tied, candidates = full_ranks(scores, torch.ones(20, dtype=torch.int64))
    assert torch.equal(better, candidate_ranks(scores)[0])
    assert torch.equal(tied, candidate_ranks(scores)[1])
    assert candidates.tolist() == [12] * 20


def test_a_table_of_the_models_own_stays_as_it_is():
    scores = torch.arange(4.0).expand(2, 4)
    before = scores.clone()
    assert full_ranks(scores, torch.tensor([1, 2]), (torch.tensor([0, 1]), torch.tensor([4, 3])))[
        0
    ].tolist() == [2, 1]
    assert torch.equal(scores, before)


def test_finite_scores_whose_sum_is_infinite_are_no_error():
    scores = torch.full((2, 3), 3e38)
    assert [x.tolist() for x in candidate_ranks(scores)] == [[0, 0], [2, 2]]


def test_scores_are_compared_in_float32():
    scores = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert [int(x) for x in candidate_ranks(scores)] == [0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_scores_that_are_not_finite_are_an_error_that_says_where(bad):
    scores = torch.zeros(5, 8, dtype=torch.float64)
    scores[3, 2] = scores[3, 6] = scores[4, 0] = bad
    where = r"2 of 5 rows; row 3 in 2 of 8 columns"
    with pytest.raises(RecexpError, match=where):
        candidate_ranks(scores)
    with pytest.raises(
        RecexpError, match=where
    ):  # also where the item would have been taken out of the ranking
        full_ranks(scores, torch.full((5,), 8), flat(torch.tensor([[3, 7, 1]] * 5)))


def test_an_id_outside_the_catalogue_is_named():
    scores = torch.zeros(2, 4)
    with pytest.raises(RecexpError, match=r"target item 5 in row 1 is outside 1\.\.4"):
        full_ranks(scores, torch.tensor([4, 5]))
    with pytest.raises(RecexpError, match=r"target item 0 in row 0"):
        full_ranks(scores, torch.tensor([0, 1]))
    with pytest.raises(RecexpError, match=r"seen item 9 in row 1 is outside 1\.\.4"):
        full_ranks(scores, torch.tensor([4, 1]), flat(torch.tensor([[0, 1], [2, 9]])))
