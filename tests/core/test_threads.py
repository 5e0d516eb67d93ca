"""One thread for little work, and afterwards as many as before."""

import threading

import pytest
import torch

from panda_sklearn.core import threads
from panda_sklearn.core.threads import WORTH_THREADS, ThreadsFor

LITTLE, MUCH = ThreadsFor(1000), ThreadsFor(WORTH_THREADS)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2 and not threads._users
    torch.set_num_threads(before)


def test_little_work_has_one_thread_and_much_has_all():
    assert LITTLE(torch.get_num_threads) == 1
    assert MUCH(torch.get_num_threads) == 2
    assert ThreadsFor(float("inf"))(torch.get_num_threads) == 2


def test_arguments_and_results_are_passed_on():
    assert LITTLE(lambda *args, **kwargs: (args, kwargs), 1, 2, a=3) == (
        (1, 2),
        {"a": 3},
    )


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_whatever_happens(error):
    def fail():
        raise error

    with pytest.raises(error):
        LITTLE(fail)
    assert torch.get_num_threads() == 2


def test_one_in_another():
    def inner():
        return LITTLE(torch.get_num_threads), torch.get_num_threads()

    assert LITTLE(inner) == (1, 1)
    assert MUCH(inner) == (1, 2)


def test_one_thread_of_the_users_stays():
    torch.set_num_threads(1)
    try:
        assert LITTLE(torch.get_num_threads) == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_two_at_the_same_time(first_ends_first):
    """The second begins while the first has one thread; neither leaves it so."""
    began = [threading.Event(), threading.Event()]
    may_end = [threading.Event(), threading.Event()]
    after = [None, None]

    def work(k):
        def wait():
            began[k].set()
            assert may_end[k].wait(10)

        LITTLE(wait)
        after[k] = torch.get_num_threads()

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker, begun in zip(workers, began, strict=True):
        worker.start()
        assert begun.wait(10)
    for k in (0, 1) if first_ends_first else (1, 0):
        may_end[k].set()
        workers[k].join()
    assert after == [2, 2]
