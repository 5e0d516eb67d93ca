"""Nothing is left behind, wherever Ctrl-C comes."""

import sys

import pytest
import torch
from sklearn.base import clone
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.generators import StyleGAN3, list_layers, sample_latents
from panda_sklearn.utils import turns
from panda_sklearn.utils.undo import MAX_TRIES, Undo
from tests.generators.families import StyleGAN3Net


class Interrupts:
    """A tracer that interrupts at the n-th line of the package, and once more later."""

    def __init__(self, first, then=None):
        self.left = [first] if then is None else [first, then]
        self.where = []

    def __call__(self, frame, event, arg):
        return self.line if "panda_sklearn" in frame.f_code.co_filename else None

    def line(self, frame, event, arg):
        if event == "line" and self.left:
            self.left[0] -= 1
            if self.left[0] == 0:
                del self.left[0]
                self.where.append((frame.f_code.co_name, frame.f_lineno))
                raise KeyboardInterrupt
        return self.line


def interrupted(act, first, then=None):
    """Where an act was interrupted; empty if it ended before."""
    tracer, before = Interrupts(first, then), sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return tracer.where


def count_lines(act):
    """How many lines of the package an act runs."""
    tracer, before = Interrupts(sys.maxsize), sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    finally:
        sys.settrace(before)
    return sys.maxsize - tracer.left[0]


def hooks_of(module):
    dicts = (v for k, v in vars(module).items() if "forward" in k and "hooks" in k)
    return sum(map(len, dicts))


def state_of(network):
    return (
        [module.training for module in network.modules()],
        sum(map(hooks_of, network.modules())),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.initial_seed(),
        len(turns._line),
        getattr(getattr(network, "synthesis", None), "input", None)
        and network.synthesis.input.transform.tolist(),
    )


def mixed():
    network = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
    )
    network.train()[3].eval()
    return network


@pytest.mark.parametrize("then", [None, 1, 2, 4])
def test_networks_are_as_before_after_interrupts_anywhere(then):
    network, z = mixed(), torch.ones(5, 4)
    extractor = GeneratorFeatureExtractor(network, "0", batch_size=3).fit(z)
    features = extractor.transform(z)
    acts = [
        lambda: extractor.transform(z),
        lambda: extractor.generate(z, features),
        lambda: GeneratorFeatureExtractor(network, "0").fit(z),
    ]
    if then is None:
        acts.append(lambda: list_layers(network, z))
    for act in acts:
        first = 0
        while True:
            first += 1
            torch.manual_seed(7)
            before = state_of(network)
            where = interrupted(act, first, then)
            if not where:
                break
            assert state_of(network) == before, where
        assert first > 100


def test_a_family_s_own_settings_are_as_before():
    network = StyleGAN3Net().train()
    forward = StyleGAN3(transform=[[1, 0, 0.3], [0, 1, 0], [0, 0, 1]])
    z = sample_latents(network, 2, random_state=0)
    extractor = GeneratorFeatureExtractor(network, "synthesis.L0_8_8", forward=forward)
    extractor.fit(z)
    codes = StyleGAN3(latent_space="w+")
    for act in (
        lambda: extractor.transform(z),
        lambda: sample_latents(network, 2, random_state=0, forward=codes),
    ):
        first = 0
        while True:
            first += 5  # not at every line: there are many
            torch.manual_seed(7)
            before = state_of(network)
            if not interrupted(act, first):
                break
            assert state_of(network) == before


def test_a_failed_fit_is_undone_wherever_it_is_interrupted():
    X = torch.rand(9, 3, 4, generator=torch.Generator().manual_seed(0))
    panda = PartsAppearanceDecomposition(2, 2, max_iter=2, tol=0, random_state=0)
    panda.fit(X)
    before = dict(vars(panda))

    def act():
        with torch.autocast("cpu", torch.bfloat16):
            panda.fit(X + 1)

    def is_as_before():
        now = vars(panda)
        return now.keys() == before.keys() and all(
            now[name] is value for name, value in before.items()
        )

    uninterrupted = clone(panda)
    with torch.autocast("cpu", torch.bfloat16):
        n_lines = count_lines(lambda: uninterrupted.fit(X + 1))
    assert n_lines > 2000
    # Some of the thousands of lines, and all of the last ones, which put the state back
    # or, once the fit is complete, let it stay.
    n_undone = n_whole = 0
    some = [*range(411, n_lines - 60, 411), *range(n_lines - 60, n_lines - 20, 2)]
    for first in [*some, *range(n_lines - 20, n_lines - 2)]:
        vars(panda).clear()
        vars(panda).update(before)
        assert interrupted(act, first)
        if is_as_before():
            n_undone += 1
        else:
            n_whole += 1
            assert vars(panda).keys() == vars(uninterrupted).keys()
            assert torch.equal(panda.parts_, uninterrupted.parts_)
            assert panda.reconstruction_err_ == uninterrupted.reconstruction_err_
            assert n_whole + first > n_lines - 60
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert n_undone > 5


def test_steps_are_taken_in_reverse_and_all_of_them():
    taken = []

    def fail():
        taken.append("fails")
        raise RuntimeError("a step's own")

    with pytest.raises(RuntimeError, match="a step's own"), Undo() as undo, undo:
        for step in (lambda: taken.append(1), fail, lambda: taken.append(2)):
            undo.note(step)
    assert taken == [2, "fails", 1]


def test_an_interrupted_step_is_taken_again():
    left = [KeyboardInterrupt] * 3
    taken = []

    def step():
        if left:
            raise left.pop()
        taken.append("step")

    with pytest.raises(KeyboardInterrupt), Undo() as undo, undo:
        undo.note(lambda: taken.append("first"))
        undo.note(step)
    assert taken == ["step", "first"]


def test_a_step_that_always_ends_so_is_given_up():
    tries = []

    def step():
        tries.append(1)
        raise SystemExit

    with pytest.raises(SystemExit), Undo() as undo, undo:
        undo.note(step)
    assert len(tries) == MAX_TRIES


def test_what_is_forgotten_stays():
    taken = []
    with Undo() as undo, undo:
        undo.note(lambda: taken.append(1))
        undo.forget()
    assert not taken
