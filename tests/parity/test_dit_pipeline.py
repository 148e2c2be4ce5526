"""The whole `DiTPipeline` of diffusers, from noise to pictures, on the same weights."""

import jax
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import cmjax
from cmjax.cli import main
from tests.support.autoencoders import draw_tensors
from tests.support.cli import succeeded

LABELS = [207, 360]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of small networks with every tensor drawn, saved by diffusers."""
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=1000,  # the pipeline takes 1000 for no class
        out_channels=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=16,
    )
    pipeline = DiTPipeline(
        draw_tensors(transformer, torch),
        draw_tensors(vae, torch),
        DDIMScheduler(clip_sample=False),
    )
    folder = tmp_path_factory.mktemp("dit")
    pipeline.save_pretrained(folder)
    return folder


def of_diffusers(folder):
    """The pipeline's pictures in [0, 1], and the latents that it starts from, channels-last."""
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        LABELS,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=4,
        output_type="np",
    )
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    return made.images, latents.numpy().transpose(0, 2, 3, 1)


def test_pictures_equal_those_of_the_pipeline(folder):
    theirs, latents = of_diffusers(folder)
    model = cmjax.load(folder)
    assert (model.sample_shape, model.picture_shape) == ((8, 8, 4), (16, 16, 3))
    ours = model.sample(
        jax.random.key(0),
        2,
        labels=LABELS,
        guidance=4,
        num_inference_steps=4,
        init=latents,
    )

    # The pipeline clips: few of these pixels are at an end.
    pixels = np.clip(np.asarray(ours) / 2 + 0.5, 0, 1)
    assert ((theirs > 0) & (theirs < 1)).mean() > 0.5
    np.testing.assert_allclose(pixels, theirs, rtol=0, atol=1e-4 * theirs.std())


def test_what_cmjax_writes_is_the_pipeline_again(folder, tmp_path):
    expected, _ = of_diffusers(folder)
    cmjax.save(tmp_path / "ours", cmjax.load(folder), to="diffusers")
    again, _ = of_diffusers(tmp_path / "ours")
    np.testing.assert_array_equal(again, expected)


def test_the_command_writes_pictures(folder, tmp_path):
    out = tmp_path / "x.npz"
    command = ["sample", "--model", folder, "--labels", 2, "--guidance", 4, "--num", 2]
    sampler = ["--scheduler", "DPMSolverMultistepScheduler", "--steps", 4, "--out", out]
    succeeded(CliRunner().invoke(main, [*map(str, [*command, *sampler])]))
    with np.load(out) as arrays:
        assert arrays["arr_0"].shape == (2, 16, 16, 3)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [2, 2]
