"""Diffusion models as generators, against the pipelines of diffusers."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_diffusion, sample_latents
from panda_sklearn.generators import Diffusion, list_layers
from tests.test_tokens import sd3 as sd3_transformer
from tests.test_tokens import seeded

diffusers = pytest.importorskip("diffusers")

# Of diffusers' own schedulers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)


def tiny_unet(seed=0):
    """A network as small as in diffusers' own tests."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
        )
    return unet.eval()


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture
def z():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=True),
    "v": lambda: diffusers.DDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing"
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("n_steps", [1, 5])
def test_images_are_the_pipelines(unet, name, n_steps):
    pipeline = diffusers.DDIMPipeline(unet, SCHEDULERS[name]())
    pipeline.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(1)
    expected = pipeline(
        3, generator=seeded, num_inference_steps=n_steps, output_type="np"
    ).images
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Diffusion(pipeline, n_steps=n_steps)
    with torch.no_grad():
        images = model(noise)
    found = (images / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    own = Diffusion(unet, SCHEDULERS[name](), n_steps=n_steps)
    with torch.no_grad():
        assert torch.equal(own(noise), images)


def test_ddpm_is_run_by_ddim(unet, z):
    ddpm = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    model = Diffusion(diffusers.DDPMPipeline(unet, ddpm), n_steps=3)
    assert isinstance(model.scheduler, diffusers.DDIMScheduler)
    assert model.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    with torch.no_grad():
        assert torch.equal(model(z), model(z))


def test_other_samplers(unet, z):
    """Samplers that scale inputs and noise, or call the network more often."""
    for kind in (diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler):
        scheduler = kind()
        with torch.no_grad():
            images = Diffusion(unet, scheduler, n_steps=3)(z)
        scheduler.set_timesteps(3)
        x = z * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            with torch.no_grad():
                predicted = unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(predicted, t, x).prev_sample
        torch.testing.assert_close(images, x)


def test_layers_are_hooked_by_name(unet, z):
    model = Diffusion(unet, SCHEDULERS["ddim"](), n_steps=4)
    for layer, shape in (
        ("unet.mid_block", (16, 4, 4)),
        ("unet.up_blocks.0", (16, 8, 8)),
    ):
        extractor = GeneratorFeatureExtractor(model, layer, call="all").fit(z)
        assert extractor.feature_shape_ == shape and extractor.n_calls_ == 4
    residuals = GeneratorFeatureExtractor(
        model, "unet.down_blocks.1", select=0, call=[0, 2]
    ).fit(z)
    assert residuals.transform(z).shape == (6, 16, 4, 4)
    inputs = GeneratorFeatureExtractor(
        model, "unet.down_blocks.0", tap="input", select="hidden_states", call=1
    )
    assert inputs.fit_transform(z).shape == (3, 8, 8, 8)


def test_an_edit_of_a_down_block_reaches_its_skip(unet, z):
    """Otherwise the up block would see the unedited tensor."""
    model = Diffusion(unet, SCHEDULERS["ddim"](), n_steps=1)
    extractor = GeneratorFeatureExtractor(model, "unet.down_blocks.1", select=0).fit(z)
    seen = []

    def look(block, args):
        _, skips, *_ = args
        seen.append(skips[-1])

    with unet.up_blocks[0].register_forward_pre_hook(look):
        extractor.generate(z, lambda maps: 0 * maps)
    assert not seen[0].any()


def test_gradients_pass(z):
    model = Diffusion(tiny_unet(), SCHEDULERS["ddim"](), n_steps=2)
    noise = z.clone().requires_grad_()
    model(noise).square().mean().backward()
    assert noise.grad.abs().sum() > 0


def test_a_pass_leaves_the_scheduler_as_it_was(unet, z):
    scheduler = SCHEDULERS["ddim"]()
    model = Diffusion(unet, scheduler, n_steps=2)
    before = scheduler.timesteps.clone()
    with torch.no_grad():
        model(z)
    assert torch.equal(scheduler.timesteps, before)


def tiny_vae(shift_factor=None):
    return diffusers.AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=8,
        shift_factor=shift_factor,
    )


def shifted_vae():
    return tiny_vae(shift_factor=0.1)


@pytest.fixture(scope="module")
def dit_pipeline():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = diffusers.DiTTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            num_embeds_ada_norm=1000,
        ).eval()
        for parameter in transformer.parameters():  # many start at zero
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        vae = tiny_vae().eval()
    pipeline = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def text_pipeline():
    pytest.importorskip("transformers")  # which diffusers needs for texts
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
        ).eval()
        vae = tiny_vae().eval()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class TestClasses:
    @pytest.mark.parametrize("scale", [1.0, 3.0])
    def test_images_are_the_pipelines(self, dit_pipeline, scale):
        expected = dit_pipeline(
            [3, 5],
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(1),
            num_inference_steps=4,
            output_type="np",
        ).images
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        model = Diffusion(dit_pipeline, n_steps=4, label=[3, 5], guidance_scale=scale)
        assert model.guidance == (None if scale == 1 else "first")
        with torch.no_grad():
            found = (model(noise) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_each_sample_has_its_own(self, dit_pipeline):
        z = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        labels = [1, 2, 3, 4, 5]
        model = Diffusion(dit_pipeline, n_steps=2, label=labels)

        def fitted(model):
            return GeneratorFeatureExtractor(
                model,
                "transformer.transformer_blocks.0",
                call="all",
                guidance=model.guidance,
                channel_axis=-1,
                token_grid=(4, 4),
                batch_size=2,
            ).fit(z[:5])

        extractor = fitted(model)
        features = extractor.split_calls(extractor.transform(z))
        images = extractor.generate(z)
        close = {"rtol": 1e-4, "atol": 1e-4}
        for k, label in enumerate(labels):
            other = fitted(Diffusion(dit_pipeline, n_steps=2, label=label))
            one = z[k : k + 1]
            torch.testing.assert_close(other.generate(one)[0], images[k], **close)
            its = other.split_calls(other.transform(one))
            torch.testing.assert_close(its[0], features[k], **close)
        with pytest.raises(ValueError, match="given for 5 samples"):
            extractor.generate(torch.cat([z, z]))


class TestTexts:
    @pytest.mark.parametrize("scale", [1.0, 5.0])
    def test_images_are_the_pipelines(self, text_pipeline, scale):
        random = torch.Generator().manual_seed(0)
        texts, without = torch.randn(2, 6, 8, generator=random), torch.zeros(6, 8)
        noise = torch.randn(2, 4, 8, 8, generator=random)
        expected = text_pipeline(
            prompt_embeds=texts,
            negative_prompt_embeds=without.expand_as(texts),
            latents=noise,
            guidance_scale=scale,
            num_inference_steps=4,
            output_type="np",
        ).images
        model = Diffusion(
            text_pipeline,
            n_steps=4,
            prompt=texts,
            negative_prompt=without,
            guidance_scale=scale,
        )
        assert model.guidance == (None if scale == 1 else "last")
        with torch.no_grad():
            found = (model(noise) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_texts_are_encoded_by_the_pipeline(self, text_pipeline, monkeypatch):
        known = {"a face": 1.0, "a dog": 2.0, "": 0.0}
        asked = []

        def encode(texts, device, n_images, guided):
            asked.append((texts, n_images, guided))
            return torch.stack([torch.full((6, 8), known[t]) for t in texts]), None

        monkeypatch.setattr(text_pipeline, "encode_prompt", encode)
        model = Diffusion(text_pipeline, n_steps=2, prompt=["a face", "a dog"])
        assert asked == [(["a face", "a dog"], 1, False), ([""], 1, False)]
        given = Diffusion(
            text_pipeline,
            n_steps=2,
            prompt=torch.stack([torch.ones(6, 8), 2 * torch.ones(6, 8)]),
            negative_prompt=torch.zeros(6, 8),
        )
        z = sample_latents(model, 2, random_state=0)
        with torch.no_grad():
            assert torch.equal(model(z), given(z))

    def test_layers_and_edits(self, text_pipeline):
        texts = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        model = Diffusion(
            text_pipeline, n_steps=3, prompt=texts, negative_prompt=0 * texts
        )
        z = sample_latents(model, 4, random_state=0)
        extractor = GeneratorFeatureExtractor(
            model, "unet.up_blocks.0", call=[0, 2], guidance=model.guidance
        )
        features = extractor.fit_transform(z)
        listed = {layer.name: layer for layer in list_layers(model, z)}
        assert listed["unet.up_blocks.0"].shape == (4, *features.shape[1:])
        panda = PartsAppearanceDecomposition(2, 4, max_iter=3, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(features))
        plain = extractor.generate(z)
        own, both, opposite = (
            (editor.edit(z, Edit(0, 1, 2.0, branches=b)) - plain).norm()
            for b in ("own", "both", "opposite")
        )
        # What guidance subtracts is subtracted with the opposite sign.
        assert both < own < opposite


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sdxl():
    unet = seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 8,
        )
    )
    return quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=seeded(tiny_vae),
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading"),
            add_watermarker=False,
        )
    )


def sd3(scheduler=None):
    transformer = seeded(sd3_transformer)
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=seeded(shifted_vae),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def shifted_sd3():
    return sd3(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


def flux(guidance_embeds=True):
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        )
    )
    return quiet(
        diffusers.FluxPipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=guidance_embeds
            ),
            vae=seeded(shifted_vae),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
        )
    )


def flux_schnell():
    return flux(guidance_embeds=False)


class TestTextsAsAWholeToo:
    """Stable Diffusion XL and 3, and Flux."""

    @pytest.mark.parametrize(
        ("make", "scale"),
        [
            (sdxl, 5.0),
            (sdxl, 1.0),
            (sd3, 7.0),
            (sd3, 1.0),
            (shifted_sd3, 2.0),
            (flux, 3.5),
            (flux_schnell, None),
        ],
    )
    def test_images_are_the_pipelines(self, make, scale):
        pytest.importorskip("transformers")
        pipeline = make()
        random = torch.Generator().manual_seed(0)
        own, other = torch.randn(2, 2, 6, 8, generator=random)
        pooled, other_pooled = torch.randn(2, 2, 8, generator=random)
        noise = torch.randn(2, 4, 8, 8, generator=random)
        is_flux = make in (flux, flux_schnell)
        without, latents, size = {}, noise, 8 * pipeline.vae_scale_factor
        if is_flux:
            latents = pipeline._pack_latents(noise, 2, 4, 8, 8)
        else:
            without = {
                "negative_prompt_embeds": other,
                "negative_pooled_prompt_embeds": other_pooled,
            }
        expected = pipeline(
            prompt_embeds=own,
            pooled_prompt_embeds=pooled,
            **without,
            latents=latents,
            height=size,
            width=size,
            guidance_scale=scale or 0.0,
            num_inference_steps=4,
            output_type="np",
        ).images
        model = Diffusion(
            pipeline,
            n_steps=4,
            prompt=(own, pooled),
            negative_prompt="" if is_flux else (other, other_pooled),
            guidance_scale=scale,
            sample_size=8,
        )
        assert model.latent_shape == (4, 8, 8)
        assert model.guidance == (None if is_flux or scale == 1 else "last")
        with torch.no_grad():
            found = (model(noise) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        assert found.std() > 0.01  # not a single colour
        np.testing.assert_allclose(found, expected, atol=1e-4)

    @pytest.mark.parametrize("make", [sdxl, sd3, flux])
    def test_texts_are_encoded_by_the_pipeline(self, make, monkeypatch):
        pytest.importorskip("transformers")
        pipeline = make()
        text, pooled = torch.ones(1, 6, 8), torch.ones(1, 8)
        asked = []

        def encode(prompt, prompt_2=None, prompt_3=None, **options):
            asked.append(prompt)
            n = float(len(prompt[0]))
            if make is flux:
                return n * text, n * pooled, None
            return n * text, None, n * pooled, None

        monkeypatch.setattr(pipeline, "encode_prompt", encode)
        more = {"n_steps": 2, "sample_size": 8}
        model = Diffusion(pipeline, prompt="a face", **more)
        assert asked == ([["a face"]] if make is flux else [["a face"], [""]])
        given = Diffusion(pipeline, prompt=(6 * text, 6 * pooled), **more)
        z = sample_latents(model, 2, random_state=0)
        with torch.no_grad():
            assert torch.equal(model(z), given(z))

    def test_an_empty_text_is_zeros_if_the_pipeline_says_so(self):
        pytest.importorskip("transformers")
        pipeline = sdxl()
        text, pooled = torch.ones(6, 8), torch.ones(8)
        asked = []

        def encode(texts, **options):
            asked.append(texts)
            return text[None], None, pooled[None], None

        pipeline.encode_prompt = encode
        assert pipeline.config.force_zeros_for_empty_prompt
        model = Diffusion(pipeline, n_steps=1, prompt=(text, pooled))
        assert asked == [[""]]
        assert not model.other_text.any() and not model.other_pooled.any()

    @pytest.mark.parametrize(
        "block", ["transformer_blocks", "single_transformer_blocks"]
    )
    def test_parts_over_the_tokens_of_flux(self, block):
        pytest.importorskip("transformers")
        random = torch.Generator().manual_seed(0)
        texts = (torch.randn(3, 6, 8, generator=random), torch.randn(3, 8))
        model = Diffusion(flux(), n_steps=2, prompt=texts, sample_size=(8, 12))
        z = sample_latents(model, 3, random_state=0)
        extractor = GeneratorFeatureExtractor(
            model,
            f"transformer.{block}.0",
            call="all",
            select=1,
            channel_axis=-1,
            token_grid=(4, 6),
            batch_size=2,
        )
        features = extractor.fit_transform(z)
        assert features.shape == (6, 32, 4, 6)
        panda = PartsAppearanceDecomposition(2, 4, max_iter=3, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(features))
        plain = extractor.generate(z)
        assert torch.equal(editor.edit(z, Edit(0, 1, 0.0)), plain)
        late = editor.edit(z, Edit(0, 1, 5.0, calls=model.calls_at(1)))
        assert not torch.allclose(late, plain)


class TestRecommended:
    """Layers that list_layers recommends."""

    def test_blocks_of_u_nets_alone(self, text_pipeline):
        texts = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        model = Diffusion(
            text_pipeline,
            n_steps=2,
            prompt=texts,
            negative_prompt=0 * texts,
            sample_size=16,
        )
        z = sample_latents(model, 2, random_state=0)
        found = list_layers(model, z).recommended
        # The last block is as large as the image, and the decoder is not the U-Net's.
        assert [layer.name for layer in found] == ["unet.mid_block"]

    def test_of_samplers_that_call_it_twice(self):
        unet = load_face_diffusion().unet
        model = Diffusion(unet, diffusers.HeunDiscreteScheduler(), n_steps=2)
        assert model.n_calls == 3
        found = list_layers(model, sample_latents(model, 1, random_state=0))
        assert [layer.name for layer in found.recommended] == [
            "unet.mid_block",
            "unet.up_blocks.0",
            "unet.up_blocks.1",
        ]

    @pytest.mark.parametrize(
        ("make", "select", "n_blocks"), [("dit", None, 2), (sd3, 1, 2), (flux, 1, 2)]
    )
    def test_blocks_of_transformers(self, dit_pipeline, make, select, n_blocks):
        pytest.importorskip("transformers")
        more = {"n_steps": 2}
        if make == "dit":
            model = Diffusion(dit_pipeline, label=3, **more)
        else:
            texts = (torch.ones(6, 8), torch.ones(8))
            if make is sd3:
                more["negative_prompt"] = texts
            model = Diffusion(make(), prompt=texts, sample_size=8, **more)
        z = sample_latents(model, 2, random_state=0)
        listed = list_layers(model, z)
        assert len(listed.recommended) == n_blocks
        assert "4 x 4 tokens" in str(listed.recommended)
        assert "set channel_axis=-1, token_grid" in str(listed)
        for layer in listed.recommended:
            assert layer.select == select and layer.token_grid == model.token_grid
            extractor = GeneratorFeatureExtractor(
                model,
                layer.name,
                select=layer.select,
                call="all",
                channel_axis=-1,
                token_grid=layer.token_grid,
                guidance=model.guidance,
            )
            n_channels = layer.shape[-1]
            assert extractor.fit_transform(z).shape == (4, n_channels, 4, 4)


class TestSteps:
    @pytest.mark.parametrize(
        ("kind", "options", "expected"),
        [
            ("DDIMScheduler", {}, [[0], [1], [2]]),
            ("HeunDiscreteScheduler", {}, [[0, 1], [2, 3], [4]]),
            ("PNDMScheduler", {"skip_prk_steps": True}, [[0, 1], [2], [3]]),
        ],
    )
    def test_calls_of_steps(self, unet, z, kind, options, expected):
        model = Diffusion(unet, getattr(diffusers, kind)(**options), n_steps=3)
        found = [model.calls_at(step) for step in range(3)]
        every = [call for calls in found for call in calls]
        extractor = GeneratorFeatureExtractor(model, "unet.mid_block", call="all")
        assert every == list(range(extractor.fit(z).n_calls_))
        assert found == expected
        assert model.calls_at([2, 0]) == found[0] + found[2]

    def test_of_a_step_that_calls_twice_both_are_edited(self, unet, z):
        """Otherwise half of a Heun step would belong to another image."""
        model = Diffusion(unet, diffusers.HeunDiscreteScheduler(), n_steps=3)
        extractor = GeneratorFeatureExtractor(
            model, "unet.mid_block", call=model.calls_at(1)
        )
        features = extractor.fit_transform(z)
        assert extractor.n_calls_ == 2
        panda = PartsAppearanceDecomposition(2, 4, max_iter=3, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(features))
        edit = Edit(0, 1, 3.0, calls=model.calls_at(1))
        assert torch.equal(editor.edit(z, edit), editor.edit(z, Edit(0, 1, 3.0)))

    @pytest.mark.parametrize("steps", [3, -1, [0, 5], 1.5, "first", None])
    def test_no_such_step(self, unet, steps):
        model = Diffusion(unet, SCHEDULERS["ddim"](), n_steps=3)
        with pytest.raises((TypeError, ValueError), match="steps"):
            model.calls_at(steps)


class TestWhatCannotBe:
    def test_arguments(self, unet, z):
        scheduler = SCHEDULERS["ddim"]()
        with pytest.raises(TypeError, match="pipeline must be"):
            Diffusion("a pipeline", scheduler)
        with pytest.raises(ValueError, match="no scheduler"):
            Diffusion(unet)
        with pytest.raises(TypeError, match="scheduler must be"):
            Diffusion(unet, nn.Identity())
        with pytest.raises(ValueError, match="n_steps"):
            Diffusion(unet, scheduler, n_steps=0)
        with pytest.raises(ValueError, match="takes no label"):
            Diffusion(unet, scheduler, label=3)
        with pytest.raises(ValueError, match="takes no negative_prompt"):
            Diffusion(unet, scheduler, negative_prompt="ugly")
        with pytest.raises(ValueError, match="takes no guidance_scale"):
            Diffusion(unet, scheduler, guidance_scale=2.0)
        model = Diffusion(unet, scheduler)
        with pytest.raises(
            ValueError, match=r"latents must be of shape \(n_samples, 3"
        ):
            model(z[..., 1:])
        with pytest.raises(TypeError, match="latents"):
            model(z.numpy())
        with pytest.raises(ValueError, match="classes"):
            sample_latents(model, 2, classes=1)

    def test_classes(self, dit_pipeline):
        with pytest.raises(ValueError, match="needs label"):
            Diffusion(dit_pipeline)
        with pytest.raises((TypeError, ValueError), match="label"):
            Diffusion(dit_pipeline, label=1000)
        with pytest.raises(ValueError, match="guidance_scale"):
            Diffusion(dit_pipeline, label=1, guidance_scale=-1)

    def test_texts(self, text_pipeline):
        with pytest.raises(ValueError, match="needs prompt"):
            Diffusion(text_pipeline)
        with pytest.raises((TypeError, ValueError), match="prompt"):
            Diffusion(text_pipeline, prompt=5)
        with pytest.raises(ValueError, match="n_tokens"):
            Diffusion(text_pipeline, prompt=torch.zeros(3))
        pair = (torch.zeros(6, 8), torch.zeros(8))
        with pytest.raises(ValueError, match="a floating tensor of shape"):
            Diffusion(text_pipeline, prompt=pair)
        with pytest.raises(ValueError, match="two floating tensors"):
            Diffusion(sd3(), prompt=pair[0])
        with pytest.raises(ValueError, match="takes no negative_prompt"):
            Diffusion(flux(), prompt=pair, negative_prompt="ugly")
        with pytest.raises(ValueError, match="takes no guidance_scale"):
            Diffusion(flux_schnell(), prompt=pair, guidance_scale=3.5)
        with pytest.raises((TypeError, ValueError), match="sample_size"):
            Diffusion(text_pipeline, prompt=pair[0], sample_size=(8, 8, 8))
        with pytest.raises((TypeError, ValueError), match="sample_size"):
            Diffusion(text_pipeline, prompt=pair[0], sample_size=0)

    def test_pipelines_of_other_kinds(self):
        pytest.importorskip("transformers")

        class Pipeline:
            def __init__(self, **networks):
                vars(self).update(networks)

        pixart = diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=8,
            caption_channels=8,
        )
        told = sdxl().unet
        told.register_to_config(time_cond_proj_dim=8)
        for pipeline in (
            Pipeline(transformer=pixart),
            Pipeline(unet=told),
            Pipeline(unet=tiny_unet(), vqvae=nn.Identity()),
            Pipeline(unet=nn.Identity()),
        ):
            with pytest.raises(TypeError, match="pipeline must be"):
                Diffusion(pipeline, SCHEDULERS["ddim"](), label=1)

    def test_decoders(self):
        pytest.importorskip("transformers")
        pipeline, texts = sdxl(), (torch.ones(6, 8), torch.ones(8))
        more = {"n_steps": 1, "prompt": texts, "negative_prompt": texts}
        z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        plain = Diffusion(pipeline, **more)(z)
        pipeline.vae.register_to_config(
            latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]
        )
        assert not torch.allclose(Diffusion(pipeline, **more)(z), plain)
        pipeline.vae.half()
        with pytest.raises(ValueError, match=r"pipeline\.vae\.float\(\)"):
            Diffusion(pipeline, **more)(z)

    def test_caches(self, z):
        unet = tiny_unet()
        unet.is_cache_enabled = True
        with pytest.raises(ValueError, match="disable_cache"):
            Diffusion(unet, SCHEDULERS["ddim"]())(z)

    def test_without_diffusers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(ImportError, match="pip install diffusers"):
            load_face_diffusion()


@pytest.fixture(scope="module")
def model():
    return load_face_diffusion(n_steps=4)


class TestFaces:
    def test_loading_leaves_global_state_alone(self):
        state = torch.get_rng_state()
        model = load_face_diffusion()
        assert torch.equal(state, torch.get_rng_state())
        assert not model.training and model.n_steps == 12
        assert not any(p.requires_grad for p in model.parameters())
        n_parameters = sum(p.numel() for p in model.parameters())
        assert n_parameters < 2_000_000

    def test_noise_is_drawn_in_its_shape(self, model):
        noise = sample_latents(model, 5, random_state=0)
        assert noise.shape == (5, 3, 64, 64)
        assert torch.equal(noise, sample_latents(model, 5, random_state=0))
        assert abs(float(noise.std()) - 1) < 0.02

    def test_images_are_faces(self, model):
        """Symmetric and with the photographs' mean, unlike noise."""
        with torch.no_grad():
            images = model(sample_latents(model, 8, random_state=0)).clamp(-1, 1)
        mean = images.mean(dim=0)
        mirrored = np.corrcoef(mean.flatten(), mean.flip(-1).flatten())[0, 1]
        assert mirrored > 0.8
        middle = images[:, :, 20:50, 20:44].mean()
        assert middle > images[:, :, :, [0, 1, 62, 63]].mean() + 0.1

    def test_parts_of_a_step(self, model):
        noise = sample_latents(model, 6, random_state=0)
        extractor = GeneratorFeatureExtractor(model, "unet.up_blocks.0", call=[1, 3])
        features = extractor.fit_transform(noise)
        assert features.shape == (12, 96, 16, 16)
        panda = PartsAppearanceDecomposition(4, 8, max_iter=3, tol=0, random_state=0)
        assert panda.fit(features).parts_.shape == (4, 16, 16)
        found = [layer.name for layer in list_layers(model, noise[:1]).recommended]
        assert found == ["unet.mid_block", "unet.up_blocks.0", "unet.up_blocks.1"]
