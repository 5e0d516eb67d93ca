"""
Training the face generator that the package ships
==================================================

This script made ``panda_sklearn/datasets/data/face_generator.safetensors``. It is
not run when the documentation is built.

Recipe: the non-saturating loss with an R1 penalty every eighth step, Adam at 2e-3
decayed linearly over the last third, horizontal flips, weights averaged over time,
a discriminator with one score for the image and one for each patch. Two things keep
the faces varied: the mapping network learns slowly, and half of the training images
mix the styles of two latents.

Images come from :func:`sklearn.datasets.fetch_lfw_people` (downloaded on first
use), or with ``--images`` from a tar archive or a folder of the same photographs
already cropped (rows 45 to 195, columns 50 to 200 of 250) and scaled to 64 x 64::

    python examples/train_face_generator.py --out runs/face
    python examples/train_face_generator.py --images lfw64.tar --out runs/face
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

from panda_sklearn.datasets._face_generator import (
    CHANNELS,
    LATENT_SIZE,
    FaceGenerator,
)

SIZE = 64
CROP = (slice(45, 195), slice(50, 200))


def load_images(source):
    """Photographs as a uint8 tensor of shape (n_images, 3, 64, 64)."""
    if source is None:
        from sklearn.datasets import fetch_lfw_people

        # Half a pixel more than wanted, since the scaled size is rounded down.
        scale = (SIZE + 0.5) / (CROP[0].stop - CROP[0].start)
        faces = fetch_lfw_people(color=True, slice_=CROP, resize=scale)
        pictures = list((faces.images * 255).round().astype(np.uint8))
    else:
        source = Path(source)
        if source.is_dir():
            files = [path.read_bytes() for path in sorted(source.glob("*.jpg"))]
        else:
            with tarfile.open(source) as archive:
                members = sorted(archive.getmembers(), key=lambda m: m.name)
                files = [archive.extractfile(m).read() for m in members if m.isfile()]
        pictures = [np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


class Discriminator(nn.Module):
    """Four stride-2 convolutions, then a score for the image and one per patch."""

    def __init__(self, widths=(48, 96, 160, 224)):
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
    def _scaled(module, x):
        weight = module.weight / math.sqrt(module.weight[0].numel())
        if isinstance(module, nn.Linear):
            return F.linear(x, weight, module.bias)
        return F.conv2d(x, weight, module.bias, module.stride, module.padding)

    def forward(self, images):
        x = images
        for level, conv in enumerate(self.convs):
            x = F.leaky_relu(self._scaled(conv, x), 0.2) * math.sqrt(2)
            if level == 2:
                patches = self._scaled(self.patch, x)
        # Minibatch standard deviation in groups of four: betrays mode collapse.
        groups = x.unflatten(0, (4, -1))
        spread = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        spread = spread.repeat(4)[:, None, None, None].expand(-1, 1, 4, 4)
        x = torch.cat([x, spread], dim=1).flatten(1)
        x = F.leaky_relu(self._scaled(self.hidden, x), 0.2) * math.sqrt(2)
        return self._scaled(self.score, x), patches


def loss_on(scores, sign, patch_weight=0.3):
    """Softplus loss of image and patch scores; ``sign=-1`` rewards high scores."""
    image, patches = scores
    return F.softplus(sign * image).mean() + patch_weight * (
        F.softplus(sign * patches).mean()
    )


def generate_mixed(generator, n_samples):
    """Images; half of them take a second latent's style from a random block on."""
    w, other = generator.styles(torch.randn(2 * n_samples, LATENT_SIZE)).chunk(2)
    n_blocks = len(CHANNELS)
    switch = torch.randint(1, n_blocks, (n_samples, 1))
    switch[torch.rand(n_samples) < 0.5] = n_blocks
    return generator.synthesize(
        [torch.where(switch > block, w, other) for block in range(n_blocks)]
    )


def variety(images):
    """Median distance of an image to its nearest neighbour, at 16 x 16, in std."""
    x = F.avg_pool2d(images, 4).flatten(1)
    x = (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
    return (distances.min(dim=1).values.median() / x.shape[1] ** 0.5).item()


def picture(images, columns):
    """Tile images in [-1, 1] into one PIL picture."""
    images = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    rows = images.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    return Image.fromarray(rows.flatten(0, 1).flatten(1, 2).numpy())


def train(images, out, *, steps, batch_size, seed, report_every):
    """Train and write checkpoints and sample grids to ``out``."""
    torch.manual_seed(seed)
    # Channels last makes the convolutions a quarter faster on the CPU.
    generator = FaceGenerator().to(memory_format=torch.channels_last)
    critic = Discriminator().to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(generator).requires_grad_(False)
    adam = {"betas": (0.0, 0.99), "lr": 2e-3}
    optimisers = [
        torch.optim.Adam(network.parameters(), **adam)
        for network in (generator, critic)
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda step: min(1.0, max(0.02, 3 * (1 - step / steps)))
        )
        for o in optimisers
    ]
    fixed = torch.randn(1000, LATENT_SIZE)
    some = images[torch.randint(len(images), (1000,))].float() / 127.5 - 1
    print(f"variety of the photographs: {variety(some):.3f}")
    started = time.perf_counter()
    for step in range(1, steps + 1):
        real = images[torch.randint(len(images), (batch_size,))].float() / 127.5 - 1
        real = real.contiguous(memory_format=torch.channels_last)
        flip = torch.rand(batch_size) < 0.5
        real[flip] = real[flip].flip(-1)

        with torch.no_grad():
            fake = generate_mixed(generator, batch_size)
        penalise = step % 8 == 0
        real.requires_grad_(penalise)
        scores = critic(real)
        critic_loss = loss_on(scores, -1) + loss_on(critic(fake), 1)
        if penalise:
            (slope,) = torch.autograd.grad(
                scores[0].sum() + 0.3 * scores[1].mean(dim=(1, 2, 3)).sum(),
                real,
                create_graph=True,
            )
            # gamma / 2 = 0.15, times 8 since it is applied every eighth step.
            critic_loss = critic_loss + 8 * 0.15 * slope.square().sum((1, 2, 3)).mean()
        optimisers[1].zero_grad(set_to_none=True)
        critic_loss.backward()
        optimisers[1].step()

        critic.requires_grad_(False)
        fake_loss = loss_on(critic(generate_mixed(generator, batch_size)), -1)
        optimisers[0].zero_grad(set_to_none=True)
        fake_loss.backward()
        optimisers[0].step()
        critic.requires_grad_(True)
        for schedule in schedules:
            schedule.step()

        decay = min(0.999, 1 - 1 / (0.1 * step + 1))
        with torch.no_grad():
            for mean, value in zip(
                averaged.parameters(), generator.parameters(), strict=True
            ):
                mean.lerp_(value, 1 - decay)

        if step % report_every == 0 or step == steps:
            with torch.no_grad():
                styles = averaged.styles(torch.randn(10_000, LATENT_SIZE))
                averaged.style_mean.copy_(styles.mean(dim=0))
                samples = torch.cat([averaged(part) for part in fixed.split(50)])
            picture(samples[:96], 12).save(out / f"samples_{step:06d}.png")
            half = {k: v.half().contiguous() for k, v in averaged.state_dict().items()}
            save_file(half, out / "face_generator.safetensors")
            minutes = (time.perf_counter() - started) / 60
            print(
                f"step {step} of {steps}, {minutes:.1f} min, "
                f"losses {fake_loss.item():.2f} {critic_loss.item():.2f}, "
                f"variety {variety(samples):.3f}",
                flush=True,
            )


def main():
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--images", help="tar archive or folder of 64 x 64 JPEGs")
    parser.add_argument("--out", type=Path, default=Path("runs/face"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-every", type=int, default=500)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(
        load_images(args.images),
        args.out,
        steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        report_every=args.report_every,
    )


if __name__ == "__main__":
    main()
