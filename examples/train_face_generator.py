"""
Training the face generator that the package ships
==================================================

This script made ``panda_sklearn/datasets/data/face_generator.safetensors``. It is
not run when the documentation is built.

The photographs are aligned: a face-mesh network finds eyes and mouth, and each face is
rotated, scaled and shifted so that they are in the same place in all images. Parts that
are shared by all samples need this, and it makes the task of a small generator much
easier.

The recipe: non-saturating loss with an R1 penalty every eighth step, Adam at 2e-3 with
a learning rate that falls by half towards the end, horizontal flips, bfloat16, weights
averaged over time; a discriminator with one score for the image and one for each patch.
Two things keep the faces varied: the mapping network learns slowly, and half of the
generated images mix the styles of two latents. Training takes minutes on a GPU and a
few hours on two CPU cores.

Photographs come from :func:`sklearn.datasets.fetch_lfw_people` (downloaded on first
use), or with ``--images`` from a tar archive or a folder of aligned JPEGs of 64 x 64
pixels. A run that was interrupted continues when it is started again::

    python -m pip install ".[train]"
    python examples/train_face_generator.py --out runs/face
    python examples/train_face_generator.py --out runs/face --images faces64.tar
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from panda_sklearn.datasets._face_generator import (
    LATENT_SIZE,
    N_BLOCKS,
    FaceGenerator,
)
from panda_sklearn.metrics import sliced_wasserstein_distance

SIZE = 64
# Centres of the eyes and of the mouth in aligned images: (column, row) in pixels.
PLACES = np.array([[22, 27], [42, 27], [32, 49]])
# The corners of the eyes and of the mouth among the points of MediaPipe's face mesh.
CORNERS = ((33, 133), (362, 263), (61, 291))
# Faces are left out if turned by more than this, in degrees, or with eyes closer than
# this, in pixels of the photograph.
MOST_TURNED = 20
LEAST_APART = 20

N_SAMPLES = 1000  # of a report

RATE = 2e-3
MIXED = 0.5  # fraction of the generated images that mix two latents
HALF_LIFE = 100_000  # of the average of the weights, in images
PATCH_WEIGHT = 0.3
GAMMA = 0.3  # of R1
PENALTY_EVERY = 8
CRITIC_WIDTHS = (64, 128, 192, 256)


def aligned(photograph, mesh):
    """Align a photograph (H, W, 3) of bytes; return None if its face is unsuitable.

    ``mesh`` is MediaPipe's ``FaceMesh``.
    """
    height, width = photograph.shape[:2]
    found = mesh.process(photograph).multi_face_landmarks
    if not found:
        return None
    size = np.array([width, height, width])  # depths are in widths, too
    faces = [
        np.array([[p.x, p.y, p.z] for p in face.landmark]) * size for face in found
    ]
    middle = size[:2] / 2
    face = min(faces, key=lambda mesh: np.linalg.norm(mesh[1, :2] - middle))
    points = np.array([face[list(pair)].mean(axis=0) for pair in CORNERS])
    across, down = points[1] - points[0], points[2] - points[:2].mean(axis=0)
    yaw = math.degrees(math.atan2(across[2], across[0]))
    pitch = math.degrees(math.atan2(down[2], down[1]))
    if max(abs(yaw), abs(pitch)) > MOST_TURNED or across[0] < LEAST_APART:
        return None

    # The similarity transform from the crop to the photograph, by least squares in
    # complex numbers: z -> turn z + shift.
    to, at = (pair[:, 0] + 1j * pair[:, 1] for pair in (points, PLACES))
    away = at - at.mean()
    turn = (away.conj() @ (to - to.mean())) / (away.conj() @ away)
    shift = to.mean() - turn * at.mean()
    corners = turn * np.array([0, SIZE, 1j * SIZE, (1 + 1j) * SIZE]) + shift
    inside = (corners.real >= 0) & (corners.real <= width)
    inside &= (corners.imag >= 0) & (corners.imag <= height)
    if not inside.all():
        return None
    finer = 4  # drawn larger, then reduced, so that every pixel counts
    turn = turn / finer
    matrix = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    crop = Image.fromarray(photograph).transform(
        (finer * SIZE, finer * SIZE),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
    )
    return np.asarray(crop.reduce(finer))


def align(paths):
    """Align photographs, except unsuitable ones; bytes (n_images, 64, 64, 3)."""
    from mediapipe.python.solutions.face_mesh import FaceMesh

    options = {"max_num_faces": 4, "refine_landmarks": True}
    with FaceMesh(static_image_mode=True, **options) as mesh:
        crops = [aligned(read_image(path), mesh) for path in tqdm(paths)]
    return np.stack([crop for crop in crops if crop is not None])


def load_images(source=None, cache=Path("aligned.npy")):
    """Aligned photographs as a uint8 tensor of shape (n_images, 3, 64, 64).

    From a tar archive or a folder; or scikit-learn's, which are aligned here and cached
    in the file ``cache``.
    """
    if source is not None:
        pictures = read_images(Path(source))
    elif cache.exists():
        pictures = np.load(cache)
    else:
        from sklearn.datasets import fetch_lfw_people, get_data_home

        # Downloads all; the array that it returns is kept small.
        fetch_lfw_people(min_faces_per_person=500, resize=0.1)
        folder = Path(get_data_home()) / "lfw_home" / "lfw_funneled"
        pictures = align(sorted(folder.glob("*/*.jpg")))
        np.save(cache, pictures)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def read_images(source):
    """The JPEGs of a tar archive or a folder, by name, as bytes (n_images, H, W, 3)."""
    if source.is_dir():
        files = [path.read_bytes() for path in sorted(source.glob("*.jpg"))]
    else:
        with tarfile.open(source) as archive:
            members = sorted(archive.getmembers(), key=lambda m: m.name)
            files = [archive.extractfile(m).read() for m in members if m.isfile()]
    return np.stack([read_image(io.BytesIO(file)) for file in files])


def read_image(file):
    """An image as bytes (height, width, 3)."""
    return np.asarray(Image.open(file).convert("RGB"))


def shuffled(images):
    """Images in a random order, the same in every run; the last ones are held out."""
    generator = torch.Generator().manual_seed(0)
    return images[torch.randperm(len(images), generator=generator)]


class Discriminator(nn.Module):
    """Four convolutions of stride 2, then a score for the image and one per patch."""

    def __init__(self, widths=CRITIC_WIDTHS):
        super().__init__()
        n_in = [3, *widths[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 4, stride=2, padding=1)
            for i, o in zip(n_in, widths, strict=True)
        )
        self.patch = nn.Conv2d(widths[2], 1, 1)
        self.hidden = nn.Linear((widths[3] + 1) * 16, 128)
        self.score = nn.Linear(128, 1)
        for module in self.modules():  # equalised learning rate: see forward
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight)
                nn.init.zeros_(module.bias)

    @staticmethod
    def _scaled(module, x, gain=1.0):
        weight = module.weight * (gain / math.sqrt(module.weight[0].numel()))
        if isinstance(module, nn.Linear):
            return F.linear(x, weight, module.bias)
        return F.conv2d(x, weight, module.bias, module.stride, module.padding)

    def forward(self, images):
        x = images
        for level, conv in enumerate(self.convs):
            x = F.leaky_relu(self._scaled(conv, x, math.sqrt(2)), 0.2)
            if level == 2:
                patches = self._scaled(self.patch, x)
        # Minibatch standard deviation in groups of four, which reveals mode collapse.
        groups = x.unflatten(0, (4, -1)).float()
        spread = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        spread = spread.repeat(4)[:, None, None, None].expand(-1, 1, 4, 4)
        x = torch.cat([x, spread.to(x.dtype)], dim=1).flatten(1)
        x = F.leaky_relu(self._scaled(self.hidden, x, math.sqrt(2)), 0.2)
        return self._scaled(self.score, x).float(), patches.float()


def loss_on(scores, sign):
    """Softplus loss of image and patch scores; ``sign=-1`` rewards high scores."""
    image, patches = scores
    return F.softplus(sign * image).mean() + PATCH_WEIGHT * (
        F.softplus(sign * patches).mean()
    )


def slope_of(critic, images):
    """Mean squared norm of the gradient of the critic's scores: R1."""
    images = images.detach().requires_grad_(True)
    image, patches = critic(images)
    total = image.sum() + PATCH_WEIGHT * patches.mean(dim=(1, 2, 3)).sum()
    (slope,) = torch.autograd.grad(total, images, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


def generate_mixed(generator, n_samples, device):
    """Images, of which some take a second latent's style from a random block on."""
    latents = torch.randn(2 * n_samples, LATENT_SIZE, device=device)
    w, other = generator.styles(latents).chunk(2)
    switch = torch.randint(1, N_BLOCKS, (n_samples, 1), device=device)
    switch[torch.rand(n_samples, device=device) >= MIXED] = N_BLOCKS
    return generator.synthesize(
        [torch.where(switch > block, w, other) for block in range(N_BLOCKS)]
    )


def reduced(images, size):
    """Images in [-1, 1] reduced to ``size`` x ``size`` pixels, as rows."""
    return F.avg_pool2d(images.clamp(-1, 1), images.shape[-1] // size).flatten(1)


def distances_to(photographs, images):
    """Sliced Wasserstein distances at 16, 32 and 64 pixels, of equally many images."""
    n = min(len(photographs), len(images))
    return np.array(
        [
            sliced_wasserstein_distance(
                reduced(images[:n], size),
                reduced(photographs[:n], size),
                random_state=0,
            )
            for size in (16, 32, 64)
        ]
    )


def nearest(images, others=None):
    """Distance of each image to the nearest other one, at 16 x 16 pixels."""
    rows = reduced(images, 16)
    if others is None:
        return torch.cdist(rows, rows).fill_diagonal_(torch.inf).min(dim=1).values
    return torch.cdist(rows, reduced(others, 16)).min(dim=1).values


def variety(images, photographs):
    """Median distance to the nearest other image, over that of photographs."""
    n = min(len(images), len(photographs))
    return (nearest(images[:n]).median() / nearest(photographs[:n]).median()).item()


def picture(images, columns):
    """Tile images in [-1, 1] into one PIL picture."""
    images = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    rows = images.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    return Image.fromarray(rows.flatten(0, 1).flatten(1, 2).numpy())


def to_unit(images, device):
    """Bytes as numbers from -1 to 1."""
    images = images.to(device).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


class Training:
    """The two networks, their optimisers and the average, as one thing to save."""

    NUMBERS = ("step", "seed")

    def __init__(self, device, seed):
        torch.manual_seed(seed)
        self.device, self.seed, self.step = device, seed, 0
        place = {"device": device, "memory_format": torch.channels_last}
        self.generator = FaceGenerator().to(**place)
        self.critic = Discriminator().to(**place)
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimisers = [
            torch.optim.Adam(network.parameters(), RATE, betas=(0.0, 0.99), fused=True)
            for network in (self.generator, self.critic)
        ]

    def advance(self, real, rate):
        """Make a step on a batch of photographs; return both losses."""
        self.step += 1
        # What a step draws depends on its number alone, so that a resumed run is the
        # same as an uninterrupted one.
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        n = len(real)
        flip = torch.rand(n, device=real.device) < 0.5
        real = torch.where(flip[:, None, None, None], real.flip(-1), real)
        half = torch.autocast(self.device.type, torch.bfloat16)

        with half:
            fake = generate_mixed(self.generator, n, self.device).float()
            # One pass for both halves would mix their minibatch standard deviations.
            critic_loss = loss_on(self.critic(real), -1)
            critic_loss = critic_loss + loss_on(self.critic(fake.detach()), 1)
        if self.step % PENALTY_EVERY == 0:
            slope = slope_of(self.critic, real)
            critic_loss = critic_loss + PENALTY_EVERY * (GAMMA / 2) * slope
        self.optimisers[1].zero_grad(set_to_none=True)
        critic_loss.backward()
        self.optimisers[1].step()

        self.critic.requires_grad_(False)
        with half:
            fake_loss = loss_on(self.critic(fake), -1)
        self.optimisers[0].zero_grad(set_to_none=True)
        fake_loss.backward()
        self.optimisers[0].step()
        self.critic.requires_grad_(True)

        memory = min(HALF_LIFE, 0.05 * self.step * n)  # in images
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()),
                list(self.generator.parameters()),
                1 - 0.5 ** (n / memory),
            )
        # Tensors, since floats would make the GPU wait at each step.
        return fake_loss.detach(), critic_loss.detach()

    @torch.no_grad()
    def sample(self, latents):
        """Images of the averaged generator, after updating its mean style."""
        generator = torch.Generator().manual_seed(0)
        some = torch.randn(10_000, LATENT_SIZE, generator=generator).to(self.device)
        self.averaged.style_mean.copy_(self.averaged.styles(some).mean(dim=0))
        return torch.cat(
            [self.averaged(z.to(self.device)).cpu() for z in latents.split(50)]
        )

    def save(self, path):
        """Save all that a run needs to continue, whole or not at all."""
        parts = (self.generator, self.critic, self.averaged, *self.optimisers)
        state = {name: getattr(self, name) for name in self.NUMBERS}
        state["parts"] = [part.state_dict() for part in parts]
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path):
        """Continue from a file of :meth:`save`."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        parts = (self.generator, self.critic, self.averaged, *self.optimisers)
        for part, saved in zip(parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        for name in self.NUMBERS:
            setattr(self, name, state[name])


def report(training, images, held_out, out):
    """Save samples and weights; return a line on the progress of the run."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(N_SAMPLES, LATENT_SIZE, generator=generator)
    samples = training.sample(latents)
    picture(samples[:96], 12).save(out / f"samples_{training.step:06d}.png")
    half = {
        k: v.half().contiguous().cpu()
        for k, v in training.averaged.state_dict().items()
    }
    save_file(half, out / "face_generator.safetensors")
    training.save(out / "checkpoint.pt")
    seen, unseen = (to_unit(x, "cpu") for x in (images[:N_SAMPLES], held_out))
    n = len(unseen) // 4 * 4  # for the critic's groups of four
    with torch.no_grad():
        scores = [
            training.critic(x[:n].to(training.device))[0].mean().item()
            for x in (seen, unseen, samples)
        ]
    ratios = distances_to(unseen, samples) / distances_to(unseen, seen)
    return (
        "critic on seen, unseen, generated "
        + ", ".join(f"{score:.2f}" for score in scores)
        + "; distance at 16, 32, 64 pixels "
        + ", ".join(f"{ratio:.2f}" for ratio in ratios)
        + f"; variety {variety(samples, seen):.2f}"
    )


def rate_at(step, steps):
    """Adam's rate: constant for seven tenths of the run, then falling to a half.

    At much smaller rates contrasts become too strong.
    """
    return RATE * min(1.0, 0.5 + (1 - step / steps) / 0.6)


def train(images, held_out, out, *, steps, batch_size, seed, report_every):
    """Train, or continue, and write checkpoints and sample grids to ``out``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = Training(device, seed)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
        print(f"continues after step {training.step}")
    order, pool = torch.Generator(), images.to(device)
    started, first = time.perf_counter(), training.step
    while training.step < steps:
        order.manual_seed(training.seed * 1_000_003 + training.step)
        chosen = torch.randint(len(pool), (batch_size,), generator=order)
        real = to_unit(pool[chosen.to(device)], device)
        losses = training.advance(real, rate_at(training.step, steps))
        if training.step % report_every == 0 or training.step == steps:
            minutes = (time.perf_counter() - started) / 60
            speed = (training.step - first) * batch_size / minutes / 60
            print(
                f"step {training.step} of {steps}, {minutes:.1f} min, "
                f"{speed:.0f} images a second, losses "
                + ", ".join(f"{loss.item():.2f}" for loss in losses)
                + "; "
                + report(training, images, held_out, out),
                flush=True,
            )


def main():
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--images", help="tar archive or folder of aligned JPEGs")
    parser.add_argument("--out", type=Path, default=Path("runs/face"))
    parser.add_argument("--steps", type=int, default=17_350)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-every", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=500, help="not trained on")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images = load_images(args.images, args.out / "aligned.npy")
    images = shuffled(images)
    train(
        images[: -args.held_out],
        images[-args.held_out :],
        args.out,
        steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        report_every=args.report_every,
    )


if __name__ == "__main__":
    main()
