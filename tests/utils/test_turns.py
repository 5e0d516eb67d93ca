"""One thread at a time runs networks."""

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.utils import turns
from panda_sklearn.utils.turns import has_turn, take_turn
from panda_sklearn.utils.undo import Undo
from tests.networks import TinyGenerator, run_threads


def test_a_thread_may_take_further_turns():
    with Undo() as outer, outer:
        take_turn(outer)
        with Undo() as inner, inner:
            take_turn(inner)
            assert has_turn()
        assert has_turn()
    assert not has_turn() and not turns._line


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    order = []

    def work(i):
        while len(turns._line) != 1 + i:  # each stands behind the ones before
            pass
        with Undo() as undo, undo:
            take_turn(undo)
            assert has_turn()
            order.append(i)

    with Undo() as undo, undo:
        take_turn(undo)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        while len(turns._line) != 5:
            pass
        with Undo() as further, further:
            take_turn(further)  # the others go on waiting
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_an_interrupt_while_waiting(monkeypatch):
    begun, done = threading.Event(), threading.Event()

    def work():
        with Undo() as undo, undo:
            take_turn(undo)
            begun.set()
            done.wait(60)

    def interrupt():
        raise KeyboardInterrupt

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(60)
    monkeypatch.setattr(turns._changed, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt), Undo() as undo, undo:
        take_turn(undo)
    assert len(turns._line) == 1 and not has_turn()
    done.set()
    thread.join()
    assert not turns._line


def test_threads_that_ask_for_each_other_s_networks(z):
    """Each runs one network while it runs the other."""
    extractors = [
        GeneratorFeatureExtractor(TinyGenerator(seed=seed), "block1").fit(z)
        for seed in range(2)
    ]
    expected = [e.generate(z) for e in extractors]
    wrong = []

    def work(i):
        def use_the_other(features):
            if not torch.equal(extractors[1 - i].generate(z), expected[1 - i]):
                wrong.append(i)
            return features

        for _ in range(20):
            found = extractors[i].generate(z, use_the_other)
            torch.testing.assert_close(found, expected[i])

    run_threads(work, 2)
    assert wrong == [] and not turns._line


def test_a_pass_of_batches_leaves_others_their_turns(network, z):
    """Also where its thread waits for them, or another thread closes it."""
    network.train()
    extractor = GeneratorFeatureExtractor(network, "block1", batch_size=1).fit(z)
    expected = extractor.transform(z)
    with ThreadPoolExecutor(1) as pool:
        for k, batch in enumerate(extractor.batches(z)):
            torch.testing.assert_close(batch, expected[k : k + 1])
            assert network.training
            found = pool.submit(extractor.transform, z).result(60)
            assert torch.equal(found, expected)
        passing = iter(extractor.batches(z))
        next(passing)
        pool.submit(passing.close).result(60)
    assert network.training and not turns._line


def test_networks_that_start_threads_are_refused(z):
    """What layers return in threads of the network's own is not seen."""

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, z):
            with ThreadPoolExecutor(1) as pool:
                return self.last(pool.submit(self.branch, z).result())

    with pytest.raises(ValueError, match="'branch' never ran"):
        GeneratorFeatureExtractor(Parallel(), "branch").fit(z)
    assert GeneratorFeatureExtractor(Parallel(), "last").fit_transform(z).shape[1] == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("own", [True, False])
def test_a_process_forked_in_a_turn(own):
    """The turn of another thread, which the child lacks, is over; one's own goes on."""
    begun, done = threading.Event(), threading.Event()

    def work():
        with Undo() as undo, undo:
            take_turn(undo)
            begun.set()
            done.wait(60)

    thread = threading.Thread(target=work)
    with Undo() as undo, undo:
        if own:
            take_turn(undo)
        else:
            thread.start()
            begun.wait(60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork
            child = os.fork()
        if child == 0:
            with Undo() as inner, inner:
                as_expected = has_turn() == own
                take_turn(inner)
                os._exit(0 if as_expected and has_turn() else 1)
        assert os.waitpid(child, 0)[1] == 0
    done.set()
    if not own:
        thread.join()
    assert not turns._line
