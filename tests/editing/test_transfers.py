"""Edits towards other activations: those of donors, or of moved latents."""

import copy

import numpy as np
import pytest
import torch

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.editing import EditedGenerator, load_edits, save_edits
from panda_sklearn.editing._changes import _refined
from panda_sklearn.utils.regions import change_inside
from panda_sklearn.utils.resizing import resize
from tests.editing.conftest import unit_scaled
from tests.networks import TinyGenerator


@pytest.fixture(scope="module")
def donors():
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def features(editor, z):
    return editor.extractor.transform(z)


@pytest.fixture(scope="module")
def of_donors(editor, donors):
    return editor.extractor.transform(donors)


def edited_features(editor, z, edit):
    """Activations with an edit, recorded by a callable in their place."""
    seen = []
    extractor = editor.extractor
    change = editor._change([edit], len(z))
    for where in torch.arange(len(z)).split(extractor.batch_size):
        some = slice(int(where[0]), int(where[-1]) + 1)

        def take(others):
            return extractor.transform(others)

        apply = change.applied(z[some], some, take)
        seen.append(apply(extractor.transform(z[some])))
    return torch.cat(seen)


class TestCoefficients:
    @pytest.mark.parametrize("part", [1, [0, 2], [0, 1, 2]])
    @pytest.mark.parametrize("amount", [1.0, 0.3, -0.5, 2.0])
    def test_the_parts_move_by_the_amount(self, editor, z, donors, part, amount):
        panda = editor.decomposition
        L, target = (
            panda.coefficients(editor.extractor.transform(x)) for x in (z, donors)
        )
        edit = Edit(coefficients=target, part=part, strength=amount)
        moved = panda.coefficients(edited_features(editor, z, edit))
        expected = L.lerp(target, amount)
        torch.testing.assert_close(
            moved[..., part], expected[..., part], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            editor.transfer(z, donors, part, amount), editor.edit(z, edit)
        )

    def test_it_is_the_smallest_change_that_does_so(self, editor, z, donors, features):
        panda = editor.decomposition
        target = panda.coefficients(editor.extractor.transform(donors))
        added = edited_features(editor, z, Edit(coefficients=target, part=[0, 2]))
        added = (added - features).flatten(2).double().numpy()
        A = panda.appearances_.double().numpy()
        P = panda.parts_.flatten(1).double().numpy()[[0, 2]]
        L = panda.coefficients(features)
        for one, delta in zip(added, (target - L).double().numpy(), strict=True):
            # In rows of kron(P, A): that of part k, appearance j is p_k x a_j.
            M = np.einsum("rc,ks->krcs", A, P).reshape(2 * len(A), -1)
            goal = delta[:, [0, 2]].T.ravel()
            least = np.linalg.lstsq(M, goal, rcond=None)[0]
            np.testing.assert_allclose(one.ravel(), least, atol=1e-3)

    def test_with_a_mask_the_reconstruction_moves_there(
        self, editor, z, donors, features, of_donors
    ):
        panda = editor.decomposition
        mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
        target = panda.coefficients(of_donors)
        found = edited_features(editor, z, Edit(coefficients=target, part=mask))
        one, two = (
            panda.inverse_transform(panda.transform(X)) for X in (features, of_donors)
        )
        torch.testing.assert_close(
            found, features + mask * (two - one), rtol=1e-4, atol=1e-4
        )

    def test_refined_parts(self, editor, z, donors):
        """Each sample's coefficients at its refined parts become the donor's."""
        panda = editor.decomposition

        def at_refined(X):
            maps = X.flatten(2)
            return panda.appearances_ @ maps @ _refined(panda, maps).mT, maps

        target, _ = at_refined(editor.extractor.transform(donors))
        change = editor._change(
            [Edit(coefficients=target, part=1)], len(z), refine=True
        )
        X = editor.extractor.transform(z)
        moved = change.applied(z, slice(0, len(z)), None)(X).flatten(2)
        Q = _refined(panda, X.flatten(2))[:, 1]
        L = torch.einsum("rc,ncs,ns->nr", panda.appearances_, moved, Q)
        torch.testing.assert_close(L, target[:, :, 1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            editor.transfer(z, donors, 1, refine=True),
            editor.edit(z, Edit(coefficients=target, part=1), refine=True),
        )


class TestActivations:
    @pytest.mark.parametrize("amount", [1.0, 0.4])
    def test_they_are_mixed_at_the_part(
        self, editor, by_hand, z, donors, features, of_donors, amount
    ):
        p = unit_scaled(editor.decomposition.parts_[1])
        expected = by_hand(editor, z, amount * p * (of_donors - features))
        edit = Edit(features=of_donors, part=1, strength=amount)
        torch.testing.assert_close(editor.edit(z, edit), expected)
        torch.testing.assert_close(
            editor.transfer(z, donors, 1, amount, mix=True), expected
        )

    def test_everywhere_they_are_the_donor(self, editor, z, donors):
        edited = editor.transfer(z, donors, np.ones((4, 4)), mix=True)
        torch.testing.assert_close(edited, editor.extractor.generate(donors))


class TestLatents:
    @pytest.mark.parametrize("strength", [2.0, torch.linspace(-1, 1, 9)])
    @pytest.mark.parametrize("each", [False, True])
    def test_activations_there_are_blended_in(
        self, editor, by_hand, z, donors, features, strength, each
    ):
        direction = donors if each else donors[0]
        steps = torch.as_tensor(strength).reshape(-1, 1)
        moved = editor.extractor.transform(z + steps * direction)
        p = unit_scaled(editor.decomposition.parts_[[0, 2]].sum(dim=0))
        expected = by_hand(editor, z, p * (moved - features))
        edit = Edit(latent=direction, part=[0, 2], strength=strength)
        torch.testing.assert_close(editor.edit(z, edit), expected)
        assert (expected - editor.extractor.generate(z)).abs().max() > 0.1

    def test_they_add_up_with_other_edits(self, editor, by_hand, z, donors, features):
        moved = editor.extractor.transform(z + donors[0])
        panda = editor.decomposition
        parts = [unit_scaled(part) for part in panda.parts_]
        change = parts[1] * (moved - features)
        change = change + 2 * panda.appearances_[0][:, None, None] * parts[0]
        edits = [Edit(latent=donors[0], part=1), Edit(0, 0, 2.0, "alpha")]
        expected = by_hand(editor, z, change)
        torch.testing.assert_close(editor.edit(z, edits), expected)

    def test_noise_is_the_same_at_both(self, pipeline, z):
        """So a network with noise is unchanged away from the part."""
        extractor = GeneratorFeatureExtractor(
            TinyGenerator(noise=0.5), "block2", batch_size=4
        ).fit(z)
        panda = PartsAppearanceDecomposition(2, 2, max_iter=5, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(extractor.transform(z)))
        direction = torch.full((6,), 1e-6)
        change = editor.edit(z, Edit(latent=direction, part=0))
        assert (change - extractor.generate(z)).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["coefficients", "features", "latent"])
class TestEverythingThatTakesEdits:
    @pytest.fixture()
    def edit(self, editor, kind, of_donors, donors):
        values = {
            "latent": donors[0],
            "features": of_donors[0],
            "coefficients": editor.decomposition.coefficients(of_donors)[0],
        }
        return Edit(part=1, strength=0.7, **{kind: values[kind]})

    def test_unit_and_kind(self, edit, kind):
        assert edit.unit == "alpha" and edit.kind == kind
        assert Edit(0, 0).unit == "std" and Edit(variation=0, part=0).unit == "std"
        with pytest.raises(ValueError, match="is for appearances and variations"):
            Edit(part=1, unit="std", **{kind: getattr(edit, kind)})
        same = Edit(part=1, strength=0.7, **{kind: getattr(edit, kind).clone()})
        assert same == edit and hash(same) == hash(edit)

    def test_no_strength_is_the_same_image(self, editor, z, edit, kind):
        none = Edit(part=1, strength=0.0, **{kind: getattr(edit, kind)})
        assert torch.equal(editor.edit(z, none), editor.extractor.generate(z))

    def test_target_change(self, editor, z, edit, kind):
        factors = editor.find_strengths(z, edit, 0.02)
        scaled = Edit(part=1, strength=0.7 * factors, **{kind: getattr(edit, kind)})
        torch.testing.assert_close(
            editor.edit(z, edit, target_change=0.02),
            editor.edit(z, scaled),
            rtol=1e-4,
            atol=1e-5,
        )

    def test_one_for_each_sample(self, editor, z, edit, kind):
        value = getattr(edit, kind)
        each = torch.stack([n * value for n in range(len(z))])
        edited = editor.edit(z, Edit(part=1, **{kind: each}))
        for n in (0, 5):
            alone = Edit(part=1, **{kind: each[n]})
            torch.testing.assert_close(edited[n], editor.edit(z, alone)[n])
        factors = editor.find_strengths(z[1:], Edit(part=1, **{kind: each[1:]}), 0.02)
        assert (factors > 0).all()
        with pytest.raises(ValueError, match=f"{kind} must be for 9, got one for each"):
            editor.edit(z, Edit(part=1, **{kind: each[:5]}))

    def test_other_shapes_and_values(self, editor, z, edit, kind):
        value = getattr(edit, kind)
        with pytest.raises(ValueError, match=f"{kind} must be of shape"):
            editor.edit(z, Edit(part=1, **{kind: value[..., :-1]}))
        with pytest.raises(ValueError, match="NaN"):
            Edit(part=1, **{kind: value * torch.nan})
        with pytest.raises((TypeError, ValueError), match=f"{kind} must be"):
            Edit(part=1, **{kind: "smile"})
        with pytest.raises(ValueError, match="too large"):
            editor.edit(z, Edit(part=1, strength=1e38, **{kind: value + 1e3}))

    def test_an_edited_generator(self, editor, z, edit, kind):
        edited = EditedGenerator(editor, edit, learn_strengths=True)
        before = getattr(edit, kind).clone()
        with torch.no_grad():
            torch.testing.assert_close(edited(z), editor.edit(z, edit))
            torch.testing.assert_close(
                copy.deepcopy(edited).double()(z.double()).float(), edited(z)
            )
            other = EditedGenerator(
                editor, Edit(part=0, **{kind: torch.zeros_like(getattr(edit, kind))})
            )
            other.load_state_dict(edited.state_dict())
            if kind != "coefficients":  # which are of part 0 here
                torch.testing.assert_close(other(z), edited(z))
            zero = EditedGenerator(
                editor, Edit(part=1, **{kind: torch.zeros_like(before)})
            )
            EditedGenerator(editor, edit).load_state_dict(zero.state_dict())
            assert torch.equal(getattr(edit, kind), before)  # which was copied
        edited(z).square().sum().backward()
        assert float(edited.strengths.grad.abs()) > 0

    def test_kept(self, editor, z, edit, kind, tmp_path):
        panda = editor.decomposition
        save_edits(tmp_path / "edits", [edit, Edit(0, 0)], panda)
        (again, _) = load_edits(tmp_path / "edits", panda)
        expected = editor.edit(z, edit)
        torch.testing.assert_close(editor.edit(z, again), expected)
        if kind == "coefficients":
            with pytest.raises(ValueError, match="edit 0 moves coefficients of the"):
                load_edits(tmp_path / "edits")
        else:
            alone, _ = load_edits(tmp_path / "edits")
            torch.testing.assert_close(editor.edit(z, alone), expected)


def test_integer_latents_have_no_directions(pipeline):
    class OfClasses(TinyGenerator):
        def forward(self, z):
            return super().forward(z.float())

    z = torch.arange(54).reshape(9, 6) % 5
    extractor = GeneratorFeatureExtractor(OfClasses(), "block1").fit(z)
    editor = LocalEditor(extractor, pipeline[1])
    with pytest.raises(ValueError, match="the latents are integers"):
        editor.edit(z, Edit(latent=np.ones(6), part=0))


class TestDonors:
    def test_coefficients_of_one_donor(self, editor, z, donors):
        """As the decomposition returns them, with an axis of one sample."""
        panda, extractor = editor.decomposition, editor.extractor
        L = panda.coefficients(extractor.transform(donors[:1]))
        torch.testing.assert_close(
            editor.edit(z, Edit(coefficients=L, part=1)),
            editor.transfer(z, donors[:1], 1),
        )

    def test_an_amount_that_is_too_large(self, editor, z, donors):
        with pytest.raises(ValueError, match=r"amount=3e\+38 is too large"):
            editor.transfer(z, 10 * donors, 1, 3e38)

    @pytest.mark.parametrize("mix", [False, True])
    def test_one_for_all_and_the_mean_of_many(self, editor, z, donors, mix):
        one = editor.transfer(z, donors[:1], 1, mix=mix)
        every = donors[:1].repeat(len(z), 1)
        torch.testing.assert_close(one, editor.transfer(z, every, 1, mix=mix))
        mean = editor.transfer(z[:2], donors, 1, mix=mix, mean=True)
        features = editor.extractor.transform(donors)
        if mix:
            edit = Edit(features=features.mean(dim=0), part=1)
        else:
            L = editor.decomposition.coefficients(features).mean(dim=0)
            edit = Edit(coefficients=L, part=1)
        torch.testing.assert_close(mean, editor.edit(z[:2], edit))

    def test_masks_and_amounts_of_each_sample(self, editor, z, donors):
        masks = torch.rand(9, 4, 4, generator=torch.Generator().manual_seed(0))
        amounts = torch.linspace(0, 1, 9)
        for mix in (False, True):
            edited = editor.transfer(z, donors, masks, amounts, mix=mix)
            for n in (0, 6):
                alone = editor.transfer(
                    *(z[n : n + 1], donors[n : n + 1], masks[n], float(amounts[n])),
                    mix=mix,
                )
                torch.testing.assert_close(edited[n], alone[0])

    def test_numpy(self, editor, z, donors):
        edited = editor.transfer(z.numpy(), donors.numpy(), 1)
        assert isinstance(edited, np.ndarray)
        torch.testing.assert_close(
            torch.from_numpy(edited), editor.transfer(z, donors, 1)
        )

    @pytest.mark.parametrize(
        "options, error, match",
        [
            ({"donors": np.ones((4, 6))}, ValueError, "donors must be one, or one for"),
            ({"donors": np.ones((9, 5))}, ValueError, "has 5 features, but"),
            ({"part": 3}, ValueError, "part must be from 0 to 2"),
            ({"amount": np.nan}, ValueError, "amount must be a finite"),
            ({"amount": np.ones(4)}, ValueError, "amount must be for 9, got one for"),
            ({"mix": 2}, TypeError, "mix must be"),
            ({"mean": "yes"}, TypeError, "mean must be"),
            ({"part": torch.eye(4), "refine": True}, ValueError, "no edit is at one"),
        ],
    )
    def test_bad_input(self, editor, z, donors, options, error, match):
        options = {"donors": donors, "part": 1, **options}
        with pytest.raises(error, match=match):
            editor.transfer(z, **options)


def test_targets_of_networks_that_draw_noise(z):
    """Even if some samples of a batch are done before others."""
    extractor = GeneratorFeatureExtractor(TinyGenerator(noise=0.5), "block2").fit(z)
    panda = PartsAppearanceDecomposition(2, 2, max_iter=5, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(extractor.transform(z)))
    edit = Edit(0, 0)
    edited = editor.edit(z, edit, target_change=0.05)
    mask = resize(unit_scaled(panda.parts_[0])[None, None], (8, 8))[:, 0]
    found = change_inside(mask, edited - extractor.generate(z))
    torch.testing.assert_close(found, torch.full_like(found, 0.05), rtol=0.011, atol=0)


class TestClippedValues:
    def test_clipped_images_change_by_the_target(self, editor, z):
        edit, shown = Edit(1, 2, 1.0), (-0.3, 0.3)
        edited = editor.edit(z, edit, target_change=0.05, value_range=shown)
        mask = resize(unit_scaled(editor.decomposition.parts_[2])[None, None], (8, 8))[
            :, 0
        ]
        plain = editor.extractor.generate(z)
        change = edited.clamp(*shown) - plain.clamp(*shown)
        found = change_inside(mask, change)
        torch.testing.assert_close(
            found, torch.full_like(found, 0.05), rtol=0.011, atol=0
        )
        assert change_inside(mask, edited - plain).max() > 0.06

    @pytest.mark.parametrize("value_range", [(1, 0), (1,), "grey"])
    def test_bad_ranges(self, editor, z, value_range):
        for call in (editor.edit, editor.find_strengths):
            with pytest.raises((TypeError, ValueError), match="value_range must be"):
                call(z, Edit(1, 2), target_change=0.1, value_range=value_range)

    def test_without_a_target(self, editor, z):
        with pytest.raises(ValueError, match="value_range is only used with target"):
            editor.edit(z, Edit(1, 2), value_range=(-1, 1))


def test_background_by_its_own_coefficients(editor, z):
    """Context-aware removal as a transfer within each sample."""
    panda = editor.decomposition
    L = panda.coefficients(editor.extractor.transform(z))
    L[..., 1] = L[..., 0]
    edit = Edit(coefficients=L, part=1)
    moved = panda.coefficients(edited_features(editor, z, edit))
    torch.testing.assert_close(moved[..., 1], L[..., 0], rtol=1e-4, atol=1e-4)


def test_removal_along_a_variation(editor, z):
    torch.testing.assert_close(
        editor.remove(z, variation=0, part=1, strength=-2.0),
        editor.edit(z, Edit(variation=0, part=1, strength=-2.0)),
    )
    with pytest.raises(ValueError, match="say which with part"):
        editor.remove(z, variation=0)
    with pytest.raises(ValueError, match="Give exactly one of"):
        editor.remove(z, 1, 1, variation=0)
