"""Learning from batches as they come."""

import pytest
import torch

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import (
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor


def learn(X, n_batches, *ranks, **options):
    panda = PartsAppearanceDecomposition(*ranks, random_state=0, **options)
    for batch in X.split(-(-len(X) // n_batches)):
        panda.partial_fit(batch)
    return panda


def faces():
    generator = load_face_generator()
    latents = sample_latents(generator, 300, random_state=0)
    return GeneratorFeatureExtractor(generator, "block8").fit_transform(latents)


def planted(snr_db):
    X, *_ = make_parts_appearances(
        300, 4, 6, n_channels=12, spatial_shape=(6, 6), snr_db=snr_db, random_state=0
    )
    return torch.from_numpy(X)


@pytest.mark.parametrize(
    "make, ranks",
    [
        (faces, (8, 16)),
        (faces, (8, 128)),
        (lambda: planted(10), (4, 6)),
        (lambda: planted(0), (4, 12)),
    ],
)
def test_a_pass_in_ten_batches_is_nearly_a_fit(make, ranks):
    X = make()
    panda = learn(X, 10, *ranks)
    whole = PartsAppearanceDecomposition(*ranks, random_state=0).fit(X)
    assert 1 - panda.score(X) <= 1.02 * (1 - whole.score(X))
    assert panda.n_samples_seen_ == len(X) and panda.n_iter_ == 10
    assert len(panda.objective_history_) == 10
    # Its own estimate of the error, and the mean saliency, are over all samples.
    mean = float(((X - panda.inverse_transform(panda.transform(X))) ** 2).sum())
    assert panda.reconstruction_err_ == pytest.approx(mean / len(X), rel=0.02)
    torch.testing.assert_close(
        panda.saliency_mean_,
        panda.saliency(X).mean(dim=(0, 2, 3)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_later_batches_are_learnt_from():
    """Each half of the samples has its own channels and positions."""
    X = planted(None)
    X[:150, :, :3], X[:150, 6:] = 0, 0
    X[150:, :, 3:], X[150:, :6] = 0, 0
    first = learn(X[:150], 1, 4, 12)
    both = learn(X, 2, 4, 12)
    assert first.score(X[150:]) < 0.1
    assert both.score(X[150:]) > 0.4


def test_memory_does_not_grow():
    X = planted(10)

    def size(panda):
        past = panda._past
        tensors = [past.of_parts.M1, past.of_parts.M2]
        tensors += [past.of_appearances.M1, past.of_appearances.M2]
        assert set(vars(past)) == {"of_parts", "of_appearances", "n_samples"}
        return sum(t.numel() for t in tensors)

    assert size(learn(X, 10, 4, 6)) == size(learn(X[:60], 2, 4, 6)) == 2 * (36**2 + 144)


def test_empty_beginnings_do_not_keep_it_from_learning():
    X = planted(10)
    panda = PartsAppearanceDecomposition(4, 6, random_state=0)
    panda.partial_fit(0 * X[:5])
    for batch in X.split(30):
        panda.partial_fit(batch)
    whole = PartsAppearanceDecomposition(4, 6, random_state=0).fit(X)
    assert panda.score(X) > whole.score(X) - 0.02


def test_batches_of_zeros_have_no_error():
    panda = PartsAppearanceDecomposition(2).partial_fit(torch.zeros(4, 3, 5))
    assert panda.objective_history_.tolist() == [0.0]


def test_ranks_cannot_change_on_the_way():
    panda = learn(planted(10), 3, 4, 6).set_params(n_parts=3)
    with pytest.raises(ValueError, match="Set them back"):
        panda.partial_fit(planted(10))


def test_single_samples():
    X = planted(10)[:20]
    panda = learn(X, 20, 3, 4)
    assert panda.parts_.isfinite().all() and (panda.parts_ >= 0).all()
    assert panda.score(X) > 0.5


def test_fit_begins_anew_and_partial_fit_goes_on_from_it():
    X = planted(10)
    panda = learn(X, 3, 4, 6)
    panda.fit(X)
    assert not hasattr(panda, "n_samples_seen_")
    fitted = panda.parts_.clone()
    again = PartsAppearanceDecomposition(4, 6, random_state=0).fit(X)
    torch.testing.assert_close(fitted, again.parts_)
    panda.partial_fit(X[:100])
    assert panda.n_samples_seen_ == 100 and panda.n_iter_ == 1
    assert panda.score(X) > again.score(X) - 0.01


def test_bad_batches_lose_nothing():
    X = planted(10)
    panda = learn(X, 3, 4, 6)
    before = panda.parts_.clone()
    for bad in (X[:, :5], X[:, :, :4], X * float("nan")):
        with pytest.raises(ValueError):
            panda.partial_fit(bad)
    assert torch.equal(panda.parts_, before) and panda.n_samples_seen_ == 300


def test_other_solvers_have_no_partial_fit():
    panda = PartsAppearanceDecomposition(solver="pgd")
    assert not hasattr(panda, "partial_fit")
    with pytest.raises(AttributeError) as caught:
        panda.partial_fit(planted(10))
    assert "solver='spg'" in str(caught.value.__cause__)
