"""Flow maps in closed form, and a small network that takes two times, for JAX and for NumPy."""

import jax.numpy as jnp

import cmjax

FLOW = cmjax.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
FLOW_MAP = cmjax.FlowMapEulerDiscreteScheduler(num_train_timesteps=1)
CTM = cmjax.CTMScheduler(clip_denoised=False)

# The schedulers of the losses that do not take one of EDM's levels.
SCHEDULERS = {
    "flow_matching": FLOW,
    "mean_flow": FLOW_MAP,
    "imf": FLOW_MAP,
    "shortcut": FLOW_MAP,
    "imm": FLOW_MAP,
    "ctm": CTM,
}


def gaussian_flow_map(std, x, t, r):
    """u of data from N(0, std^2), whose samples keep x / s(t), s(t)^2 = t^2 + (1 - t)^2 std^2.

    (s(t) - s(r)) / (t - r) x / s(t), with the difference of squares divided by t - r by hand.
    """

    def scale(t):
        return jnp.sqrt(t**2 + (1 - t) ** 2 * std**2)

    slope = (t + r - std**2 * (2 - t - r)) / (scale(t) + scale(r))
    return (slope / scale(t))[:, None] * x


def gaussian_trajectory(std, scaled, t, s):
    """F of the CTM of data from N(0, std^2), whose jump is x sqrt((std^2 + s^2) / (std^2 + t^2)).

    G = (s / t) x + (1 - s / t) g is solved for g without dividing by t - s.
    """
    t, s = (jnp.exp(time / 250) for time in (t, s))
    c_in, c_skip, c_out = CTM.parametrization.scalings(1.0, t)
    before, after = (jnp.sqrt(std**2 + level**2) for level in (t, s))
    share = std**2 * (t + s) / ((t * after + s * before) * before)
    return ((share - c_skip) / c_out / c_in)[:, None] * scaled


def gaussian_velocity(std, x, t):
    """v of data from N(0, std^2), which is their flow map from t to t."""
    return gaussian_flow_map(std, x, t, t)


def gaussian_heads(std, x, t, r, second_head=False):
    """The same by a network with a second head, whose output is the velocity at t."""
    u = gaussian_flow_map(std, x, t, r)
    if not second_head:
        return u
    return jnp.concatenate([u, gaussian_velocity(std, x, t)], axis=-1)


def tiny(
    params,
    x,
    t,
    r,
    class_labels,
    guidance_scale=None,
    guidance_interval=None,
    xp=jnp,
):
    """A network of pictures `[B, H, W, C]` that everything it is given matters to."""
    t, r = t[:, None, None, None], r[:, None, None, None]
    gain = params["gain"][class_labels][:, None, None, None]
    if guidance_scale is not None:
        gain = gain * (1 + 0.1 * guidance_scale[:, None, None, None])
    if guidance_interval is not None:
        low, high = guidance_interval[:, :1], guidance_interval[:, 1:]
        gain = gain * (1.3 + 0.2 * low - 0.3 * high)[:, :, None, None]
    inner = gain * x + params["shift"][None, None, None] + xp.sin(2 * t) * x[:, :, ::-1]
    return xp.tanh(inner) + params["span"] * (t - r) * xp.cos(x + r)


def tiny_heads(params, x, t, r, *, second_head=False, **given):
    """The same with a second head, which is another function of all that it is given."""
    u = tiny(params, x, t, r, **given)
    if not second_head:
        return u
    v = tiny(params, x, t, r / 2, **given) + 0.3 * x
    return jnp.concatenate([u, v], axis=-1)


def tiny_params():
    """Its parameters, for three classes and one more without a class."""
    return {
        "gain": jnp.array([0.7, -0.4, 0.2, 0.5], jnp.float32),
        "shift": jnp.array([0.1, -0.2], jnp.float32),
        "span": jnp.float32(0.3),
    }
