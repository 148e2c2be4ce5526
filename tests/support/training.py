"""Networks, data and float64 references that the tests of the losses share."""

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.training.losses import Frozen

EDM = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
KEY = jax.random.key(0)
STD = 0.7  # of the data of `gaussian_batch`


def evaluate(loss, apply_fn, params, batch, *, target=None, teacher=None, step=0, key=KEY):
    """Returns (loss, metrics); the target is the parameters themselves unless given."""
    frozen = Frozen(params if target is None else target, teacher)
    return loss(key, apply_fn, params, frozen, batch, jnp.int32(step))


def value(*args, **kwargs):
    """Returns the loss alone; arguments as of `evaluate`."""
    return evaluate(*args, **kwargs)[0]


def gaussian_batch(count, dimension=3):
    """Data from N(0, STD^2)."""
    return {"data": STD * jax.random.normal(jax.random.key(5), (count, dimension))}


def gaussian_denoiser(variance, x, t):
    """The network on EDM's levels whose denoiser is exact for N(0, variance)."""
    sigma = jnp.exp(t / 250)[:, None]
    noisy = x / EDM.get_input_scaling(sigma)
    c_skip, c_out = EDM.get_scalings(sigma)
    return (variance / (variance + jnp.square(sigma)) - c_skip) * noisy / c_out


def karras_grid(num_levels):
    """The levels of EDM's grid from 80 to 0.002, f64[num_levels]."""
    ramp = np.arange(num_levels) / (num_levels - 1)
    return (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def wide(params):
    """Parameters in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def finite_differences(f, params, h=1e-6):
    """Returns the gradient of a float64 function of a dict of arrays, by central differences."""
    gradient = {}
    for name, array in wide(params).items():
        slopes = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            step = np.zeros_like(array)
            step[index] = h
            up = f({**wide(params), name: array + step})
            down = f({**wide(params), name: array - step})
            slopes[index] = (up - down) / (2 * h)
        gradient[name] = slopes
    return gradient


# The smallest run with everything in it: a transformer, as it compiles quickest.
TINY_TOML = """
[network]
class = "DiT"
num_layers = 1
num_attention_heads = 1
attention_head_dim = 8
patch_size = 4
sample_size = 8
in_channels = 1
out_channels = 1
time_scale = 0.01
num_class_embeds = 3

[loss]
name = "denoising"

[optimizer]
learning_rate = 1e-3

[run]
steps = 6
batch_size = 16
log_every = 2
save_every = 3
sample_every = 6
"""
