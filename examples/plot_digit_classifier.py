"""
What a digit classifier looks at
================================

Activations need not come from a generator. Here a small convolutional network learns to
classify handwritten digits. We learn parts of its feature maps, find that a hundred
coefficients tell as much about the digit as two thousand activations, and blindfold the
network at one part after the other to see where its evidence for each digit is.
"""

# %%
# A network with trained weights
# ------------------------------
# scikit-learn ships 1,797 images of 8 x 8 pixels. The first 1,200 train the network,
# which takes a few seconds; everything after that is measured on the others.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.nn import functional as F

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.inspection import PartsDisplay

digits = load_digits()
images = (digits.images[:, None] / 8 - 1).astype("float32")  # black is -1, white 1
train, test = images[:1200], images[1200:]
y_train, y_test = digits.target[:1200], digits.target[1200:]


def trained_network():
    """Train two convolutions and a linear layer that sees each position separately."""
    network = nn.Sequential()
    network.conv1 = nn.Conv2d(1, 24, 3, padding=1)
    network.relu1 = nn.ReLU()
    network.conv2 = nn.Conv2d(24, 32, 3, padding=1)
    network.relu2 = nn.ReLU()
    network.flatten = nn.Flatten()
    network.logits = nn.Linear(32 * 64, 10)
    X, y = torch.from_numpy(train), torch.from_numpy(y_train)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-4)
    for _ in range(25):
        for chosen in torch.randperm(len(X)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(network(X[chosen]), y[chosen]).backward()
            optimizer.step()
    return network


with torch.random.fork_rng():
    torch.manual_seed(0)
    network = trained_network()

# %%
# From images to parts
# --------------------
# The extractor takes any module: images go in, activations of a layer come out.
# ``generate`` returns the output of the whole network.

n_parts = 8
pipeline = make_pipeline(
    GeneratorFeatureExtractor(network, "relu2", batch_size=200),
    PartsAppearanceDecomposition(n_parts=n_parts, n_appearances=12, random_state=0),
)
coefficients = pipeline.fit_transform(train)
extractor, panda = pipeline
maps = extractor.transform(test)

logits = extractor.generate(test)
print(f"Accuracy of the network: {(logits.argmax(axis=1) == y_test).mean():.3f}")
classifier = LogisticRegression(max_iter=1000).fit(coefficients, y_train)
linear = classifier.score(pipeline.transform(test), y_test)
print(f"{maps[0].size} activations, {coefficients.shape[1]} coefficients")
print(f"Accuracy of a linear classifier on the coefficients: {linear:.3f}")

# %%
# The parts, drawn over the means of four digits, are regions of the image:

means = np.stack([test[y_test == digit].mean(axis=0) for digit in (0, 1, 4, 7)])
parts_figure = PartsDisplay.from_estimator(panda, means).figure_

# %%
# A blindfold for each part
# -------------------------
# A part scaled from 0 to 1 says how much of each position belongs to it. We remove the
# activations there, and the network continues from the rest. Its margin for a digit,
# the right logit less the largest of the others, says how sure it is. The fraction of
# the margin that is lost says how much of the evidence was at the part.


def margins(logits):
    """The mean margin of the test images of each digit."""
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, y_test] = -np.inf
    margin = logits[rows, y_test] - others.max(axis=1)
    return np.array([margin[y_test == digit].mean() for digit in range(10)])


lowest = panda.parts_.min(axis=(1, 2), keepdims=True)
highest = panda.parts_.max(axis=(1, 2), keepdims=True)
masks = (panda.parts_ - lowest) / (highest - lowest)
blindfolded = [extractor.generate(test, maps * (1 - mask)) for mask in masks]
lost = np.stack([1 - margins(b) / margins(logits) for b in blindfolded], axis=1)
lowest_accuracy = min((b.argmax(axis=1) == y_test).mean() for b in blindfolded)
print(f"Lowest accuracy without one part: {lowest_accuracy:.3f}")

figure, axes = plt.subplots(
    2, n_parts, figsize=(9, 5.2), layout="constrained", height_ratios=(1, 3)
)
table = axes[1, 0].get_gridspec()
for ax in axes[1]:
    ax.remove()
for k, ax in enumerate(axes[0]):
    ax.imshow(panda.parts_[k], cmap="magma")
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"part {k}", fontsize="small")
ax = figure.add_subplot(table[1, :])
drawn = ax.imshow(lost, cmap="magma_r", vmin=0, vmax=0.8, aspect="auto")
ax.set(
    xticks=range(n_parts),
    yticks=range(10),
    ylabel="digit",
    title="fraction of the digit's margin that is lost without the part",
)
for digit in range(10):
    for k in range(n_parts):
        dark = lost[digit, k] > 0.4
        ax.text(
            k,
            digit,
            f"{lost[digit, k]:.2f}",
            ha="center",
            va="center",
            fontsize="small",
            color="white" if dark else "black",
        )
figure.colorbar(drawn, ax=ax)

# %%
# Most digits are recognised without any one part, but the network is less sure. There
# is evidence even where there is no ink: for a seven at the lower right (part 3), for a
# nine at the lower left (part 2).
