"""
Beside NMF and PCA
==================

Parts and appearances are one way to decompose activations. scikit-learn has others. We
give NMF and PCA the same activations, compare what their components are, how much they
keep with as many numbers, and how local edits along them are.

Run as a script, ``python examples/plot_nmf_pca.py`` writes the pictures below to the
folder ``panda_pictures``. It takes about two minutes on one core.
"""

# %%
# The same activations
# --------------------
# A thousand samples of the shipped face generator at ``block16``: 128 channels at
# 16 x 16 positions. NMF takes no negative numbers, so it sees the activations with
# these set to zero. How much that loses is printed.

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from sklearn.decomposition import NMF, PCA

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.metrics import roi_ratio

generator = load_face_generator()
extractor = GeneratorFeatureExtractor(generator, "block16")
X = extractor.fit_transform(sample_latents(generator, 1000, random_state=0)).numpy()
unseen = extractor.transform(sample_latents(generator, 200, random_state=1)).numpy()
X_clipped, unseen_clipped = np.maximum(X, 0), np.maximum(unseen, 0)
lost = 1 - np.square(X_clipped).sum() / np.square(X).sum()
print(f"In negative values: {lost:.0%} of the sum of squares")

# %%
# Five decompositions
# -------------------
# A set of maps becomes a table in three ways: a row for each sample (128 x 256
# columns), for each position of each sample (128 columns, the channels), or for each
# channel of each sample (256 columns, the positions). NMF and PCA know nothing of the
# rest. PandA works on all three axes.


def samples(maps):
    """A row for each sample."""
    return maps.reshape(len(maps), -1)


def vectors(maps):
    """A row for each position of each sample."""
    return maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])


def channels(maps):
    """A row for each channel of each sample."""
    return maps.reshape(-1, maps[0, 0].size)


def some_rows(table):
    """64,000 of 128,000 or 256,000 rows, which are plenty for NMF, and sooner done."""
    return np.random.default_rng(0).permutation(table)[:64_000]


def nmf(n_components):
    return NMF(n_components, init="nndsvda", max_iter=200, tol=1e-3, random_state=0)


# %%
# How much is kept
# ----------------
# With 12 parts and 32 appearances, PandA describes a sample by 12 x 32 = 384 numbers.
# The others get as many, or the next multiple of what one of their components takes.
# What is kept is one minus the squared error over the sum of squares, on 200 unseen
# samples: of the clipped activations, by a fit to clipped ones, and of the activations
# as they are, by a fit to those.


def kept(table, model):
    """Share of the sum of squares that the model reconstructs."""
    error = table - model.inverse_transform(model.transform(table))
    return 1 - np.square(error).sum() / np.square(table).sum()


def pca_of_samples():
    return PCA(384, svd_solver="randomized", iterated_power=2, random_state=0)


def panda_of_384():
    return PartsAppearanceDecomposition(12, 32, random_state=0)


methods = {  # name: model, rows of its table, numbers a sample, numbers it stores
    "PandA, 12 parts, 32 appearances": (panda_of_384, np.asarray, 384),
    "PCA of samples, 384 components": (pca_of_samples, samples, 384),
    "PCA of vectors, 2 components": (lambda: PCA(2), vectors, 512),
    "NMF of vectors, 2 components": (lambda: nmf(2), vectors, 512),
    "NMF of channels, 3 components": (lambda: nmf(3), channels, 384),
}
print(f"{'':32} a sample     stored  clipped  as they are")
for name, (make, rows, n_numbers) in methods.items():
    shares = []
    for maps, others in [(X_clipped, unseen_clipped), (X, unseen)]:
        if name.startswith("NMF") and maps is X:
            shares.append("-")
            continue
        table = rows(maps)
        if name.startswith("NMF"):
            table = some_rows(table)
        model = make().fit(table)
        shares.append(f"{kept(rows(others), model):.2f}")
    if name.startswith("PandA"):
        n_stored = model.parts_.size + model.appearances_.size
    else:
        n_stored = model.components_.size
    print(f"{name:32} {n_numbers:8d} {n_stored:10,d}  {shares[0]:>7}  {shares[1]:>11}")

# %%
# PCA of whole samples keeps far more. Its components are free to differ at every
# channel and position, and it stores 12.6 million numbers to be so; the generator has
# only 64 latents, so that 384 directions hold nearly all there is. Between the methods
# that share what they learn among positions or channels, PandA keeps most.
#
# What a component is
# -------------------
# For what follows each method has components to look at and to edit with: 12 parts, 12
# maps, 12 segments.

panda = panda_of_384().fit(X)
pca = PCA(12, svd_solver="randomized", iterated_power=2, random_state=0)
pca.fit(samples(X))
pca_vectors = PCA(12).fit(vectors(X))
nmf_vectors = nmf(12).fit(some_rows(vectors(X_clipped)))
nmf_channels = nmf(12).fit(some_rows(channels(X_clipped)))

n_faces = 6
latents = sample_latents(generator, 24, random_state=2)
Z = extractor.transform(latents).numpy()


def segments(maps):
    """NMF of vectors: how much of each component there is at each position."""
    found = nmf_vectors.transform(vectors(np.maximum(maps, 0)))
    return found.reshape(len(maps), *maps.shape[2:], -1).transpose(0, 3, 1, 2)


pca_maps = np.square(pca.components_.reshape(12, *X.shape[1:])).sum(axis=1)
component_maps = {
    "PandA: parts": panda.parts_[:n_faces],
    "NMF of channels: maps": nmf_channels.components_.reshape(12, 16, 16)[:n_faces],
    "NMF of vectors: segments\nof one face": segments(Z[:1])[0, :n_faces],
    "the same, of another": segments(Z[1:2])[0, :n_faces],
    "PCA of samples:\nwhere its components are": np.sqrt(pca_maps)[:n_faces],
}
maps_figure, axes = plt.subplots(5, n_faces, figsize=(9, 6.2))
for row, (name, drawn) in zip(axes, component_maps.items(), strict=True):
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, one in zip(row, drawn, strict=True):
        ax.imshow(one, cmap="magma", interpolation="bilinear")
        ax.set(xticks=[], yticks=[])
maps_figure.tight_layout(pad=0.3)

# %%
# How local a component is: the share of the positions that hold 90 % of its sum of
# squares, on average over components.


def spread(maps):
    """Mean share of the positions that hold 90 % of a map's sum of squares."""
    energy = np.sort(np.square(np.asarray(maps, dtype=float)).reshape(len(maps), -1))
    energy = energy[:, ::-1].cumsum(axis=1) / energy.sum(axis=1, keepdims=True)
    return float(((energy < 0.9).sum(axis=1) + 1).mean() / energy.shape[1])


print(f"PandA, parts               {spread(panda.parts_):.2f}")
print(f"NMF of channels, maps      {spread(nmf_channels.components_):.2f}")
print(f"NMF of vectors, segments   {spread(segments(Z).reshape(-1, 256)):.2f}")
print(f"PCA of samples, components {spread(np.sqrt(pca_maps)):.2f}")

# %%
# Edits
# -----
# An edit adds something to the activations. What it can add depends on the method:
#
# - PandA: any appearance, at the part that covers the region best;
# - NMF of channels: its maps have no direction of channels, so one channel at the map
#   that covers the region best;
# - NMF of vectors: more or less of a segment, where that is in each face;
# - PCA of samples: a component, everywhere;
# - PCA of vectors: a direction of channels, at all positions.
#
# Each has twelve to choose from, of either sign, and takes the one whose change is most
# local on eight other faces.


def covering(maps, mask):
    """The map that has most of its weight in the region, and that map, up to 1."""
    small = mask.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    maps = np.asarray(maps).reshape(-1, 16, 16)
    best = (maps * small).sum(axis=(1, 2)) / np.linalg.norm(maps, axis=(1, 2))
    return maps[best.argmax()] / maps.max(axis=(1, 2))[best.argmax()]


def candidates(mask):
    """For each method, functions of activations that say what is added to them."""
    part = covering(panda.parts_, mask)
    region_map = covering(nmf_channels.components_, mask)
    loudest = np.square(X).sum(axis=(0, 2, 3)).argsort()[::-1][:12]

    def same(change):
        return lambda maps: np.broadcast_to(change, maps.shape)

    def segment(k):
        direction = nmf_vectors.components_[k][:, None, None]
        return lambda maps: segments(maps)[:, k, None] * direction

    def everywhere(direction):
        return same(direction[:, None, None])

    return {
        "PandA": [same(a[:, None, None] * part) for a in panda.appearances_[:12]],
        "NMF of channels": [
            same((np.arange(128) == c)[:, None, None] * region_map) for c in loudest
        ],
        "NMF of vectors": [segment(k) for k in range(12)],
        "PCA of samples": [same(v.reshape(X.shape[1:])) for v in pca.components_],
        "PCA of vectors": [everywhere(v) for v in pca_vectors.components_],
    }


# %%
# In every image the region changes by the same amount, a root mean square of 0.2 where
# black to white is 2; the editor finds the strength. ROIR is the change outside of the
# region over that inside, equation (7) of the paper: low is local.

editor = LocalEditor(extractor, panda)
whole_map = np.ones((16, 16))
target = 0.2
trials = sample_latents(generator, 8, random_state=3)
trial_maps, trial_images = (
    extractor.transform(trials).numpy(),
    extractor.generate(trials),
)


def edited(latents, maps, change, mask, sign=1.0):
    """Images whose region changes by the target."""
    moved = (maps + change(maps)).astype("float32")
    edit = Edit(features=moved, part=whole_map, strength=sign)
    return editor.edit(latents, edit, target_change=target, region=mask)


def quickly_edited(change, mask, sign):
    """The same of the trial faces, nearly: one step towards the target."""
    added = sign * change(trial_maps)
    added = added / np.abs(added).max()
    for _ in range(2):
        images = extractor.generate(trials, (trial_maps + added).astype("float32"))
        squares = np.square((images - trial_images).numpy() * mask)
        rms = np.sqrt(squares.sum(axis=(1, 2, 3)) / (3 * mask.sum()))
        last, added = images, added * (target / rms.clip(1e-6))[:, None, None, None]
    return last


boxes = {
    "eyes": [(slice(23, 31), slice(16, 28)), (slice(23, 31), slice(36, 48))],
    "mouth": [(slice(45, 54), slice(22, 42))],
}
faces = extractor.generate(latents)
chosen = {}
print(f"ROIR             {'eyes':>6} {'mouth':>6}")
for region, places in boxes.items():
    mask = np.zeros((64, 64))
    for place in places:
        mask[place] = 1
    for name, changes in candidates(mask).items():
        ratios = {
            (k, sign): roi_ratio(mask, trial_images, quickly_edited(change, mask, sign))
            for k, change in enumerate(changes)
            for sign in (1.0, -1.0)
        }
        k, sign = min(ratios, key=ratios.get)
        images = edited(latents, Z, changes[k], mask, sign)
        chosen[name, region] = images, roi_ratio(mask, faces, images)
for name in candidates(mask):
    print(f"{name:16} " + " ".join(f"{chosen[name, r][1]:6.2f}" for r in boxes))

# %%
# The edits of the mouth, and where each changes the image:

names = list(candidates(mask))
edits_figure, axes = plt.subplots(6, 10, figsize=(11, 6.8))
for row, name in zip(axes, ["face", *names], strict=True):
    images = faces if name == "face" else chosen[name, "mouth"][0]
    change = (images - faces).square().mean(dim=1).sqrt()
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, image in zip(row[:5], images, strict=False):
        ax.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0))
    for ax, difference in zip(row[5:], change, strict=False):
        ax.imshow(difference, cmap="magma", vmin=0, vmax=0.5)
    for ax in row:
        ax.set(xticks=[], yticks=[])
edits_figure.tight_layout(pad=0.2)

# %%
# What PandA adds, then, is not a better compression. It is *where* and *what* as two
# bases, so that any appearance can be put at any part. NMF of channels has parts too,
# but does not say what to change there. Segments follow each face, but bring their one
# vector of channels with them. Components of PCA are the best summary, and change the
# whole image.

# %%
# When run as a script, keep the pictures.

pictures = Path("panda_pictures")
pictures.mkdir(exist_ok=True)
for name, figure in {"nmf_pca_maps": maps_figure, "nmf_pca": edits_figure}.items():
    figure.savefig(pictures / f"{name}.png", dpi=100)
print(f"Pictures are in {pictures.resolve()}")
