"""Blocks of transformers of today, of diffusers and transformers, with random weights.

Parts are maps over the grid of their tokens. Skipped where the packages are missing.
"""

from dataclasses import dataclass, field

import pytest
import torch

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)


def seeded(build):
    """A network whose random weights are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build().eval()
        for parameter in network.parameters():  # many start at zero
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return network


def sd3():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        caption_projection_dim=8,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )


def run_sd3(network, z):
    n = len(z)
    return network(
        hidden_states=z,
        encoder_hidden_states=z.new_ones(n, 3, 8),
        pooled_projections=z.new_ones(n, 8),
        timestep=z.new_full((n,), 500.0),
    ).sample


def dit():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        num_embeds_ada_norm=10,
    )


def run_dit(network, z):
    steps = torch.full((len(z),), 5)
    return network(z, timestep=steps, class_labels=steps % 3).sample


def flux():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=[4, 4, 8],
    )


def run_flux(network, z):
    n, places = len(z), torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    return network(
        hidden_states=z.flatten(2).transpose(1, 2),
        encoder_hidden_states=z.new_ones(n, 3, 8),
        pooled_projections=z.new_ones(n, 8),
        timestep=z.new_full((n,), 0.5),
        img_ids=torch.cat([torch.zeros(16, 1), places], dim=1),
        txt_ids=torch.zeros(3, 3),
    ).sample


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
    )
    return transformers.ViTModel(config)


def swin():
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
    )
    return transformers.SwinModel(config)


def run_encoder(network, z):
    return network(z).last_hidden_state


@dataclass
class Case:
    """A network, how it is run, its inputs, and what its layer needs."""

    build: object
    run: object
    latent_shape: tuple
    layer: str
    grid: tuple
    options: dict = field(default_factory=dict)

    def made(self):
        network = seeded(self.build)
        z = torch.randn(
            6, *self.latent_shape, generator=torch.Generator().manual_seed(1)
        )
        extractor = GeneratorFeatureExtractor(
            network,
            self.layer,
            forward=self.run,
            channel_axis=-1,
            token_grid=self.grid,
            **self.options,
        )
        return extractor, z


IMAGE, KEYWORD = {"select": 1}, {"tap": "input", "select": "hidden_states"}
CASES = {
    "class token": Case(
        vit, run_encoder, (3, 16, 16), "layers.0", (4, 4), {"n_prefix_tokens": 1}
    ),
    "windows": Case(
        swin,
        run_encoder,
        (3, 16, 16),
        "encoder.layers.0.blocks.1",
        (8, 8),
        {"select": 0},
    ),
    "one stream": Case(dit, run_dit, (4, 8, 8), "transformer_blocks.0", (4, 4)),
    "two streams": Case(sd3, run_sd3, (4, 8, 8), "transformer_blocks.0", (4, 4), IMAGE),
    "no text left": Case(
        sd3, run_sd3, (4, 8, 8), "transformer_blocks.1", (4, 4), IMAGE
    ),
    "keyword": Case(sd3, run_sd3, (4, 8, 8), "transformer_blocks.1", (4, 4), KEYWORD),
    "flux": Case(flux, run_flux, (4, 4, 4), "transformer_blocks.0", (4, 4), IMAGE),
    "flux, single": Case(
        flux, run_flux, (4, 4, 4), "single_transformer_blocks.0", (4, 4), IMAGE
    ),
    "flux, attention": Case(
        flux, run_flux, (4, 4, 4), "transformer_blocks.0.attn", (4, 4), {"select": 0}
    ),
    "update": Case(
        dit, run_dit, (4, 8, 8), "transformer_blocks.1", (4, 4), {"tap": "update"}
    ),
}


@pytest.mark.parametrize("name", CASES)
class TestTokens:
    def test_maps_over_the_grid(self, name):
        case = CASES[name]
        extractor, z = case.made()
        features = extractor.fit_transform(z)
        assert features.shape[2:] == case.grid
        panda = PartsAppearanceDecomposition(2, 4, max_iter=5, tol=0, random_state=0)
        assert panda.fit(features).parts_.shape == (2, *case.grid)
        same = extractor.generate(z, features)
        torch.testing.assert_close(same, extractor.generate(z), rtol=1e-4, atol=1e-5)

    def test_edits(self, name):
        extractor, z = CASES[name].made()
        panda = PartsAppearanceDecomposition(2, 4, max_iter=5, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))
        plain = extractor.generate(z)
        assert torch.equal(editor.edit(z, Edit(0, 1, 0.0)), plain)
        assert (editor.edit(z, Edit(0, 1, 3.0)) - plain).abs().max() > 1e-4


def test_a_token_is_where_it_is_in_the_image():
    """A change of one patch of the input is seen at its place, and first there."""
    extractor, z = CASES["windows"].made()
    changed = z.clone()
    changed[:, :, 10:12, 4:6] += 5  # row 5, column 2 of patches of two pixels
    before, after = extractor.fit(z).transform(z), extractor.transform(changed)
    moved = (after - before).square().sum(dim=1)
    assert (moved.flatten(1).argmax(dim=1) == 5 * 8 + 2).all()


def test_text_stays_as_it_is():
    """Of two streams the one that is not selected is not touched."""
    extractor, z = CASES["two streams"].made()
    network, seen = extractor.generator, []
    extractor.fit(z)

    def look(block, args, kwargs):
        seen.append((kwargs["encoder_hidden_states"], kwargs["hidden_states"]))

    block = network.transformer_blocks[1]
    with block.register_forward_pre_hook(look, with_kwargs=True):
        extractor.generate(z)
        extractor.generate(z, lambda maps: 0 * maps)
    (text, image), (same_text, no_image) = seen
    assert torch.equal(text, same_text) and image.any() and not no_image.any()
