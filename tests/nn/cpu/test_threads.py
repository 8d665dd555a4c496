"""Work in several Python threads."""

import threading

import pytest
import torch

from recexp.nn.cpu.threads import map_in_threads


@pytest.fixture
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def test_results_come_in_the_order_of_the_items_from_threads_of_one_torch_thread(three_threads):
    together = threading.Barrier(3)

    def action(item):
        together.wait(timeout=60)  # three items are under way at the same time
        return item, torch.get_num_threads(), threading.get_ident()

    results = map_in_threads(action, range(3))
    assert [item for item, _, _ in results] == [0, 1, 2]
    assert {n for _, n, _ in results} == {1}
    assert len({ident for _, _, ident in results} - {threading.get_ident()}) == 3
    assert torch.get_num_threads() == 3


def test_later_threads_have_the_number_of_torch_threads_that_the_caller_has(three_threads):
    map_in_threads(lambda item: item, range(9))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradients_are_recorded_where_the_caller_records_them(three_threads, mode):
    def modes(_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with mode():
        assert map_in_threads(modes, range(9)) == [modes(0)] * 9


def test_an_error_in_a_thread_reaches_the_caller(three_threads):
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda item: 1 // item, [1, 0, 1])
    assert torch.get_num_threads() == 3


def test_one_item_is_computed_by_the_calling_thread(three_threads):
    assert map_in_threads(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]
