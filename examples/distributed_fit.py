"""
A fit by several processes
==========================

Each process computes the activations of its own part of the latents, anew in each pass,
and stores none. Processes exchange only sums over samples. All of them end with the
same factors; the first one saves them.

On one machine with two processes (``torchrun`` has options for several machines)::

    torchrun --nproc-per-node=2 examples/distributed_fit.py
"""

import argparse
import os
import time

import torch
from torch import distributed as dist

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import load_face_generator, sample_latents

parser = argparse.ArgumentParser(description="Fit in several processes.")
parser.add_argument("--samples", type=int, default=2000, help="of all processes")
parser.add_argument("--path", default="factors.safetensors", help="where to save")
options = parser.parse_args()

# One GPU for each process, if there are enough; otherwise the CPU.
on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
dist.init_process_group("nccl" if on_gpu else "gloo")
device = "cpu"
if on_gpu:
    device = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(device)
rank, n_ranks = dist.get_rank(), dist.get_world_size()

generator = load_face_generator().to(device)
latents = sample_latents(generator, options.samples, random_state=0)[rank::n_ranks]
extractor = GeneratorFeatureExtractor(generator, "block16").fit(latents[:1])

start = time.perf_counter()
panda = PartsAppearanceDecomposition(12, 48, distributed=True, random_state=0)
panda.fit(extractor.batches(latents))
seconds = time.perf_counter() - start

print(
    f"Process {rank} of {n_ranks}: {len(latents)} samples, {panda.n_passes_} passes, "
    f"{seconds:.1f} s, {panda.n_bytes_sent_ / 1e6:.1f} MB sent",
    flush=True,
)
if rank == 0:
    panda.save(options.path, layer="block16", network=generator)
    print(f"The factors are in {options.path}")
dist.destroy_process_group()
