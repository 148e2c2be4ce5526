"""The same network in cmjax and in diffusers, with the same weights, and the calls to compare."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import cmjax
from cmjax import generation
from cmjax.checkpoints import diffusers
from cmjax.models import PRESETS, UNet2D, UNet2DConfig, compute_in, from_nnx

# The released architectures, and small ones; the last one is to try the scripts with.
CONFIGS = {
    **PRESETS,
    "small32": UNet2DConfig(
        sample_size=32, block_out_channels=(64, 128), num_class_embeds=10
    ),
    "tiny": UNet2DConfig(
        sample_size=4,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=10,
    ),
}
PIXELS = 127.5  # of 255, for a difference of 1 between samples in [-1, 1]


def write_pipeline(config, folder):
    """Writes a pipeline of diffusers with random weights; returns its network."""
    import torch
    from diffusers import (
        CMStochasticIterativeScheduler,
        ConsistencyModelPipeline,
        UNet2DModel,
    )

    quieten_diffusers()
    torch.manual_seed(0)
    options = diffusers.config_to_diffusers(config)
    network = UNet2DModel(**{k: v for k, v in options.items() if k[0] != "_"}).eval()
    scheduler = CMStochasticIterativeScheduler()
    ConsistencyModelPipeline(network, scheduler).save_pretrained(folder)
    return network


def quieten_diffusers():
    """Turns off what diffusers says on the way: progress bars, advice and deprecations."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")


def abstract_model(config):
    """A model with the shapes of its parameters in place of arrays."""
    module = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    apply_fn, params = from_nnx(module)
    return cmjax.Model(apply_fn, params, cmjax.CMStochasticIterativeScheduler(), config)


def random_model(config, seed=0):
    """A model with weights drawn at random, of which none is zero, as the last ones would be."""
    model = abstract_model(config)
    rng = np.random.default_rng(seed)

    # Kernels by the number of their inputs, scales near 1, biases near 0.
    def draw(path, param):
        noise = rng.standard_normal(param.shape, np.float32)
        if param.ndim > 1:
            return jnp.asarray(noise / np.float32(np.sqrt(np.prod(param.shape[:-1]))))
        center = "scale" in jax.tree_util.keystr(path)
        return jnp.asarray(center + np.float32(0.1) * noise)

    params = jax.tree_util.tree_map_with_path(draw, model.params)
    return dataclasses.replace(model, params=params)


def request_of(model):
    """A request for samples in one step, of ten classes in turn if the model has classes."""
    labels = range(10) if model.num_classes else None
    return generation.Request(num_inference_steps=1, labels=labels)


def in_dtype(model, dtype):
    """A model whose parameters are of a dtype, and which computes in it."""
    if dtype == jnp.float32:
        return model
    params = jax.tree.map(lambda param: param.astype(dtype), model.params)
    return dataclasses.replace(
        model, apply_fn=compute_in(model.apply_fn, dtype), params=params
    )


class FirstStep:
    """The first step of sampling at one batch size: its input, and the networks' calls on it."""

    def __init__(self, model, batch):
        """Draws the noise that both sides begin from."""
        scheduler = model.scheduler
        self.scheduler = scheduler
        self.state = scheduler.set_timesteps(1)
        noise = np.random.default_rng(0).standard_normal((batch, *model.sample_shape))
        self.noise = jnp.asarray(noise, jnp.float32) * scheduler.init_noise_sigma
        self.x = scheduler.scale_input(self.state, self.noise)
        self.t = jnp.full(batch, self.state.timesteps[0])
        self.labels = None
        if model.num_classes:
            self.labels = jnp.arange(batch, dtype=jnp.int32) % model.num_classes

    @property
    def cond(self):
        """Keyword arguments of the network."""
        return {} if self.labels is None else {"class_labels": self.labels}

    def ours(self, model, apply_fn):
        """A call of cmjax's network; `apply_fn` is that of the model, jitted."""
        return lambda: jax.block_until_ready(
            apply_fn(model.params, self.x, self.t, **self.cond)
        )

    def theirs(self, network):
        """A call of diffusers' network; it computes in the dtype and on the device of its weights.

        Like cmjax's, it takes and returns float32.
        """
        import torch

        weights = next(network.parameters())
        x = torch.from_numpy(np.array(self.x)).permute(0, 3, 1, 2).to(weights.device)
        x = x.contiguous(memory_format=torch.channels_last)
        t = torch.from_numpy(np.array(self.t)).to(weights.device)
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(np.array(self.labels)).to(weights.device)

        @torch.inference_mode()
        def call():
            output = network(x.to(weights.dtype), t, labels).sample.float()
            finish(weights.device)
            return output

        return call

    def samples(self, output):
        """The samples, in [-1, 1], that one step makes of a network's output."""
        return np.asarray(self.scheduler.denoise(self.state, output, self.noise))


def finish(device):
    """Waits for the work that PyTorch has given to a device."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def channels_last(output):
    """PyTorch's images `[B, C, H, W]` as JAX's, `[B, H, W, C]`."""
    return jnp.asarray(output.permute(0, 2, 3, 1).float().cpu().numpy())


def in_deviations(output, reference):
    """The largest difference of two outputs, in standard deviations of the second."""
    output = np.asarray(output)
    reference = np.asarray(reference)
    return np.abs(output - reference).max() / np.std(reference)


def in_pixels(samples, reference):
    """The largest difference of two sets of samples in [-1, 1], in steps of 1/255 of the range."""
    return np.abs(samples - reference).max() * PIXELS
