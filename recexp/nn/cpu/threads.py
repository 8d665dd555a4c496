"""Work in parallel Python threads, where torch's own threads leave a processor's cores idle.

torch computes a batch of small Cholesky factorizations in one thread, and its threads wait for
each other after every operation. Here each core works on batches of its own. What that gains for
WMF and NeuMF: ``docs/results/speed``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(action: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What the action returns for each item, in the order of the items.

    As many workers as torch has threads take the items one by one, and torch uses one thread in
    each of them. Gradients are recorded in the workers where they are in the calling thread, and
    inference mode holds too; other modes that belong to a thread do not reach the workers. With one
    worker everything happens in the calling thread.
    """
    n_threads = torch.get_num_threads()
    n_workers = min(n_threads, len(items))
    if n_workers <= 1:
        return [action(item) for item in items]
    is_inference = torch.is_inference_mode_enabled()
    is_recording = torch.is_grad_enabled()
    results: dict[int, R] = {}
    remaining = iter(enumerate(items))

    def work() -> None:
        with torch.inference_mode(is_inference), torch.set_grad_enabled(is_recording):
            for index, item in remaining:
                results[index] = action(item)

    try:
        with ThreadPoolExecutor(
            n_workers, initializer=torch.set_num_threads, initargs=(1,)
        ) as threads:
            for done in [threads.submit(work) for _ in range(n_workers)]:
                done.result()
    finally:
        torch.set_num_threads(n_threads)  # also what threads started later begin with
    return [results[index] for index in range(len(items))]
