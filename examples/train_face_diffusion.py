"""
Training the face diffusion model that the package ships
========================================================

This script made ``panda_sklearn/datasets/data/face_diffusion.safetensors``. It is not
run when the documentation is built.

A small U-Net (:class:`diffusers.UNet2DModel`, 1.9 M parameters) learns to remove noise
from the aligned photographs of :doc:`train_face_generator`: given x_t = a_t x + s_t e
it predicts v = a_t e - s_t x (Salimans & Ho 2022, section 4). The recipe: the cosine
schedule; times spread evenly over each batch, most of them where noise and image are
about equally strong; Muon for the convolutions, AdamW for the rest, learning rates that
fall to zero; horizontal flips, bfloat16, weights averaged over time. The shipped
weights are those of step 7,525 of 8,600, after 9 minutes on an H200 GPU, when time was
up. Two CPU cores, at 58 images per second, would take nine hours. A run that was
interrupted continues when it is started again::

    python -m pip install ".[train,diffusers]"
    python examples/train_face_diffusion.py --out runs/diffusion
    python examples/train_face_diffusion.py --out runs/diffusion --images faces64.tar
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import save_file
from train_face_generator import load_images, picture, shuffled, to_unit

from panda_sklearn.datasets._face_diffusion import NETWORK, SCHEDULE

SIZE = NETWORK["sample_size"]
MUON_RATE, ADAM_RATE = 2e-3, 1e-3
WARM_UP = 200  # steps
HALF_LIFE = 100_000  # of the average of the weights, in images
UNIFORM = 0.1  # fraction of the times that are drawn uniformly
CENTRE = -0.25  # of the logits of the other times


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal (Jordan et al. 2024), for convolutions.

    Torch's own only takes matrices. Weights of the same shape are updated together.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @staticmethod
    def orthogonal(matrices):
        """Nearly U V' of matrices U S V', by five Newton-Schulz steps."""
        x = matrices.bfloat16()
        x = x / (torch.linalg.matrix_norm(x.float())[:, None, None] + 1e-7).bfloat16()
        tall = x.shape[1] > x.shape[2]
        x = x.mT if tall else x
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x.mT if tall else x).float()

    @torch.no_grad()
    def step(self):
        """Make a step."""
        for group in self.param_groups:
            shapes = {}
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                state["mean"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(state["mean"], group["momentum"])
                shapes.setdefault(weight.shape, []).append((weight, ahead))
            for shape, pairs in shapes.items():
                weights, steps = zip(*pairs, strict=True)
                steps = self.orthogonal(torch.stack(steps).flatten(2))
                scale = max(1, shape[0] / math.prod(shape[1:])) ** 0.5
                for weight, step in zip(weights, steps, strict=True):
                    weight.sub_(step.view(shape), alpha=group["lr"] * scale)


def drawn_times(n_samples, device):
    """Times from 0 to 1, spread evenly over the samples.

    A tenth from all alike, the others from a logit-normal distribution.
    """
    even = (torch.rand(1, device=device) + torch.arange(n_samples, device=device)) % (
        n_samples
    )
    even = even / n_samples
    even = even[torch.randperm(n_samples, device=device)]
    normal = torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6))
    times = torch.sigmoid(CENTRE + normal)
    alike = torch.rand(n_samples, device=device) < UNIFORM
    return torch.where(alike, torch.rand(n_samples, device=device), times)


class Training:
    """The network, its optimisers and the average, as one thing to save."""

    def __init__(self, device, seed):
        torch.manual_seed(seed)
        self.device, self.seed, self.step = device, seed, 0
        self.network = UNet2DModel(**NETWORK).to(device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        convolutions = [p for p in self.network.parameters() if p.ndim == 4]
        others = [p for p in self.network.parameters() if p.ndim != 4]
        self.optimisers = [
            Muon(convolutions, MUON_RATE),
            torch.optim.AdamW(
                others, ADAM_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True
            ),
        ]
        self.rates = [MUON_RATE, ADAM_RATE]
        kept = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device)
        self.signal, self.noise = kept.sqrt(), (1 - kept).sqrt()
        self.predict = self.network
        if device.type == "cuda":
            place = {"memory_format": torch.channels_last}
            self.network.to(**place)
            self.averaged.to(**place)
            self.predict = torch.compile(self.network)

    def errors(self, predict, images, times, noise):
        """Mean squared error of v for each image."""
        steps = (times * len(self.signal)).long().clamp(max=len(self.signal) - 1)
        a, s = (x[steps][:, None, None, None] for x in (self.signal, self.noise))
        with torch.autocast(self.device.type, torch.bfloat16):
            v = predict(a * images + s * noise, steps).sample
        return (v.float() - (a * noise - s * images)).square().mean(dim=(1, 2, 3))

    def advance(self, images, part):
        """Make a step on a batch of photographs; return the loss.

        ``part`` is the fraction of the run that lies behind.
        """
        self.step += 1
        # What a step draws depends on its number alone, so that a resumed run is the
        # same as an uninterrupted one.
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        n = len(images)
        flip = torch.rand(n, device=self.device) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        times, noise = drawn_times(n, self.device), torch.randn_like(images)
        loss = self.errors(self.predict, images, times, noise).mean()
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1, self.step / WARM_UP)
                group["lr"] *= 0.5 + 0.5 * math.cos(math.pi * part)
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        memory = min(HALF_LIFE, 0.05 * self.step * n)  # in images
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()),
                list(self.network.parameters()),
                1 - 0.5 ** (n / memory),
            )
        return loss.detach()  # a float would make the GPU wait at each step

    @torch.no_grad()
    def validate(self, images):
        """Errors of the averaged weights, by thirds of time from clean to noisy."""
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(images.shape, generator=generator).to(self.device)
        times = torch.linspace(0.001, 0.999, len(images), device=self.device)
        errors = torch.cat(
            [
                self.errors(self.averaged, *batch)
                for batch in zip(
                    images.split(128), times.split(128), noise.split(128), strict=True
                )
            ]
        )
        return [third.mean().item() for third in errors.chunk(3)]

    @torch.no_grad()
    def sample(self, n_samples, n_steps=25):
        """Images of the averaged weights."""
        scheduler = DDIMScheduler(**SCHEDULE)
        scheduler.set_timesteps(n_steps, device=self.device)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(n_samples, 3, SIZE, SIZE, generator=generator).to(self.device)
        for t in scheduler.timesteps:
            x = scheduler.step(self.averaged(x, t).sample, t, x).prev_sample
        return x.cpu()

    def parts(self):
        """What a run needs to continue, beside numbers."""
        return self.network, self.averaged, *self.optimisers

    def save(self, path):
        """Save all that a run needs to continue, whole or not at all."""
        parts = [part.state_dict() for part in self.parts()]
        torch.save({"step": self.step, "parts": parts}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path):
        """Continue from a file of :meth:`save`."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        for part, saved in zip(self.parts(), state["parts"], strict=True):
            part.load_state_dict(saved)


def report(training, held_out, out):
    """Save samples and weights; return a line on the progress of the run."""
    picture(training.sample(64), 8).save(out / f"samples_{training.step:06d}.png")
    half = {
        name: value.half().contiguous().cpu()
        for name, value in training.averaged.state_dict().items()
    }
    save_file(half, out / "face_diffusion.safetensors")
    training.save(out / "checkpoint.pt")
    errors = training.validate(to_unit(held_out, training.device))
    return "unseen, from clean to noisy " + ", ".join(f"{e:.4f}" for e in errors)


def train(images, held_out, out, *, steps, batch_size, seed, report_every):
    """Train, or continue, and write checkpoints and sample grids to ``out``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = Training(device, seed)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
        print(f"continues after step {training.step}")
    order, pool = torch.Generator(), images.to(device)
    started, first, losses = time.perf_counter(), training.step, []
    while training.step < steps:
        order.manual_seed(seed * 1_000_003 + training.step)
        chosen = torch.randint(len(pool), (batch_size,), generator=order)
        real = to_unit(pool[chosen.to(device)], device)
        losses.append(training.advance(real, training.step / steps))
        if training.step % report_every == 0 or training.step == steps:
            loss = torch.stack(losses).mean().item()
            minutes = (time.perf_counter() - started) / 60
            speed = (training.step - first) * batch_size / minutes / 60
            print(
                f"step {training.step} of {steps}, {minutes:.1f} min, "
                f"{speed:.0f} images a second, loss {loss:.4f}; "
                + report(training, held_out, out),
                flush=True,
            )
            losses.clear()


def main():
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--images", help="tar archive or folder of aligned JPEGs")
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion"))
    parser.add_argument("--steps", type=int, default=8_600)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-every", type=int, default=1075)
    parser.add_argument("--held-out", type=int, default=500, help="not trained on")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images = shuffled(load_images(args.images, args.out / "aligned.npy"))
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
