import pytest
import torch
import torch.nn.functional as F

from recexp.errors import RecexpError
from recexp.models.common import latest
from recexp.models.gru4rec import GRU4Rec
from recexp.testing import toy, worlds

SCHEMA = toy.schema()
FORMS = [
    {},
    {"input_table": "separate", "n_layers": 2},
    {"input_table": "constrained"},
    {"cell": "torch", "input_table": "constrained", "n_layers": 2},
]


def model(**options):
    return toy.randomise(GRU4Rec(SCHEMA, **({"n_factors": 4} | options)))


@pytest.mark.parametrize("options", FORMS)
def test_steps_in_lock_step_equal_whole_histories(options):
    m = model(**options)
    rows = torch.tensor([[1, 2, 9, 4], [3, 3, 8, 5]])
    hidden, states = m.initial_state(2), []
    for item_B in rows.T:
        state, hidden = m.step(item_B, hidden)
        states.append(state)
    assert torch.allclose(torch.stack(states, 1), m.encode(toy.query([0, 1], rows.tolist())))


@pytest.mark.parametrize("options", FORMS)
def test_scoring_reads_what_training_reads_the_whole_session(options):
    """Longer than any window, from the store, as evaluation asks; beside users with short ones."""
    rows = [(0, 1 + (5 * n + n * n) % 12, 1) for n in range(300)]
    rows += [(1, 4, 1), (2, 7, 1), (2, 3, 1)]
    opened = worlds.store(rows, 4, 12, held_out=[2, 3, 4, 5])
    m = model(**options)
    query = opened.query_held_out(opened.test, torch.arange(4), m.history)
    assert query.item_BL.shape == (4, 300)
    vectors, bias = m.item_vectors()
    for user, scores in enumerate(m.score(query)):
        state, hidden = torch.zeros(1, 4, dtype=torch.float64), m.initial_state(1)
        for owner, item, _ in rows:
            if owner == user:
                state, hidden = m.step(torch.tensor([item]), hidden)
        assert torch.allclose(scores, state[0] @ vectors.T + bias)
    newest = m.score(latest(query, 200))[0]
    assert torch.allclose(model(**options, max_len=200).score(query)[0], newest)
    none = opened.query_held_out(opened.test, torch.arange(0), m.history)
    assert m.score(none).shape == (0, 12)


@pytest.mark.parametrize("options", FORMS)
def test_the_last_states_alone_need_no_others(options):
    m = model(**options)
    query = toy.query([0, 1, 2, 3, 4], [[], [1, 2, 9, 4], [3], [], [3, 3, 8, 5]])
    last = m.encode(query, last_only=True)
    assert torch.allclose(last, m.encode(query)[:, -1:]) and not last[[0, 3]].any()


@pytest.mark.parametrize("options", FORMS)
def test_a_zeroed_row_starts_a_new_session(options):
    m = model(**options)
    _, hidden = m.step(torch.tensor([1, 2]), m.initial_state(2))
    state, _ = m.step(torch.tensor([3, 4]), hidden * torch.tensor([0.0, 1.0])[:, None])
    assert torch.allclose(state[0], m.encode(toy.query([0], [[3]]))[0, -1])
    assert torch.allclose(state[1], m.encode(toy.query([0], [[2, 4]]))[0, -1])


def test_the_two_cells_are_different_models():
    """They agree on the first event, where the state that the reset gate acts on is zero, and part
    on the second.
    """
    a, b = model(input_table="constrained"), model(cell="torch", input_table="constrained")
    D, layer = 4, a.layers[0]
    with torch.no_grad():
        b.item.weight.copy_(a.item.weight)
        b.gru.weight_ih_l0.copy_(layer.input.weight)
        b.gru.weight_hh_l0.copy_(torch.cat([layer.gates.weight, layer.candidate.weight]))
        b.gru.bias_ih_l0.copy_(layer.bias)
        b.gru.bias_hh_l0.zero_()
        for weight in (b.gru.weight_ih_l0, b.gru.weight_hh_l0, b.gru.bias_ih_l0):
            weight[
                D : 2 * D
            ] *= -1  # torch's update gate says how much to keep, the paper's how much to change
    first, second = (toy.query([0], [row]) for row in ([3], [3, 7]))
    assert torch.allclose(a.encode(first), b.encode(first))
    assert not torch.allclose(a.encode(second), b.encode(second))


def test_empty_histories_have_the_zero_state():
    for options in FORMS:
        m = model(**options)
        assert torch.allclose(m.score(toy.query([6], [[]]))[0], m.item_bias[1:])


def test_final_activation_is_for_losses_and_keeps_the_order():
    x = torch.linspace(-3, 3, 20)
    assert torch.equal(model().final_activation(x), x)
    assert torch.equal(model(final_activation="tanh").final_activation(x), x.tanh())
    assert torch.equal(
        model(final_activation="elu", elu_alpha=0.5).final_activation(x), F.elu(x, 0.5)
    )
    query = toy.query([0], [[1, 2, 9]])
    assert torch.equal(model(final_activation="tanh").score(query), model().score(query))


def test_starting_values_are_uniform_with_the_fans_of_each_gate():
    torch.manual_seed(0)
    schema, D = toy.schema(n_items=500, side=False), 64
    V = schema.V
    m = GRU4Rec(schema, n_factors=D)
    layer = m.layers[0]
    for weight, fans in (
        (m.item.weight, V + D),
        (m.input.weight, V + D),
        (layer.gates.weight, 2 * D),
        (layer.candidate.weight, 2 * D),
    ):
        bound = (6 / fans) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
    assert m.input.weight.shape == (V, 3 * D)
    assert not (layer.bias.any() or m.item_bias.any() or m.item.weight[0].any())


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("which", ["embedding_dropout", "dropout"])
def test_dropouts_act_in_training_only(options, which):
    query = toy.query([0], [[1, 2, 9]])
    torch.manual_seed(0)
    m = model(**options, **{which: 0.5})
    assert torch.equal(m.score(query), m.score(query))
    assert not torch.allclose(m.train().score(query), m.score(query))


def test_sizes_of_the_input_tables():
    def size(**options):
        return sum(p.numel() for p in model(**options).parameters())

    V, D = SCHEMA.V, 4
    recurrent = 3 * D * D + 3 * D
    assert size() == V * D + V + V * 3 * D + recurrent
    assert size(input_table="separate") == V * D + V + V * D + 3 * D * D + recurrent
    assert size(input_table="constrained", output_bias=False) == V * D + 3 * D * D + recurrent


def test_choices_that_do_not_go_together_are_refused():
    with pytest.raises(RecexpError, match="input_table"):
        GRU4Rec(SCHEMA, cell="torch")
    with pytest.raises(RecexpError, match="final_activation"):
        GRU4Rec(SCHEMA, final_activation="relu")


def test_gradients_in_closed_form_are_for_plain_tables_and_official_layers_only():
    assert model(input_table="constrained").gru_layers() is not None
    assert model(input_table="constrained", item_side="all").gru_layers() is None
    assert model(input_table="constrained", cell="torch").gru_layers() is None
