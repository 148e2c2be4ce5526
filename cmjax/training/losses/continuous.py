"""Consistency in the limit of neighbouring levels: the 2023 paper's, and the simplified one (sCM), by forward mode."""

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization import consistency_function, edm_denoiser, trigflow_network
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.discretization import tangent_warmup
from cmjax.training.losses.base import (
    Batch,
    LossConfig,
    Metrics,
    draw_levels,
    mean_square,
    split,
    teacher_slope,
    unweighted,
    weigh_levels,
)


def continuous_training_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Consistency training between infinitely close levels (Song et al. 2023, theorem 6), with the l2 metric.

    Its gradient is the limit of N - 1 times the discrete loss's on N levels, which is what the paper's
    pseudo-objective is for; the value is written as a square, `|f - f_target + df_target/du|^2`, of that gradient.
    """
    del step
    return _continuous(
        key, apply_fn, params, target_params, batch, config, lambda x, sigma, noise: noise
    )


def continuous_distillation_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """As `continuous_training_loss`, along the teacher's ODE (Song et al. 2023, theorem 5).

    `target_params` is the pair (target, teacher).
    """
    del step
    slope = teacher_slope(config, apply_fn, target_params[1], split(batch)[1])
    return _continuous(
        key, apply_fn, params, target_params[0], batch, config, lambda x, sigma, _: slope(x, sigma)
    )


def scm_training_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Simplified continuous-time consistency training, sCT (Lu & Song 2024, Algorithm 1).

    The network may be in TrigFlow's terms (`SCMScheduler`) or EDM's, which differ by scalings alone. With parameters
    `with_level_weight` the weighting is adaptive.
    """
    return _scm(key, apply_fn, params, target_params, batch, step, config, None)


def scm_distillation_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Simplified continuous-time consistency distillation, sCD (Lu & Song 2024, Algorithm 1).

    As `scm_training_loss`, along the ODE of a teacher that denoises; `target_params` is the pair (target, teacher).
    """
    target_params, teacher_params = target_params
    teacher = trigflow_network(config.teacher_fn or apply_fn, config.scheduler, edm_denoiser)

    def slope(x, t, **cond):  # dx/dt = sigma_data F(x / sigma_data, t) (equation 4)
        return config.scheduler.sigma_data * teacher(teacher_params, x, t, **cond)

    return _scm(key, apply_fn, params, target_params, batch, step, config, slope)


def _continuous(key, apply_fn, params, target_params, batch, config, slope):
    scheduler, (data, cond) = config.scheduler, split(batch)
    level_key, noise_key = jax.random.split(key)
    ramp = jax.random.uniform(level_key, data.shape[:1])
    sigma, rate = jax.jvp(
        lambda u: karras_sigmas(1 - u, *config.grid),
        (ramp,),
        (1 + 0 * ramp,),
    )
    noise = jax.random.normal(noise_key, data.shape)
    noisy = combine((1, data), (sigma, noise))

    def f(params, x, sigma):
        return consistency_function(apply_fn, params, scheduler, x, sigma, **cond)

    along = combine((rate, slope(noisy, sigma, noise)))
    value, tangent = jax.jvp(
        lambda x, sigma: f(target_params, x, sigma), (noisy, sigma), (along, rate)
    )
    target = jax.lax.stop_gradient(value - tangent)
    loss = jnp.mean(mean_square(f(params, noisy, sigma) - target))
    return loss, {"loss": loss}


def _scm(key, apply_fn, params, target_params, batch, step, config, slope):
    sigma_data, (data, cond) = config.scheduler.sigma_data, split(batch)
    level_key, noise_key = jax.random.split(key)
    sigma = draw_levels(level_key, data.shape[0], config)
    t = jnp.arctan(sigma / sigma_data)
    cos, sin = jnp.cos(t), jnp.sin(t)
    noise = sigma_data * jax.random.normal(noise_key, data.shape)
    x = combine((cos, data), (sin, noise))
    dx = combine((cos, noise), (-sin, data)) if slope is None else slope(x, t, **cond)

    network = trigflow_network(apply_fn, config.scheduler, consistency_function)
    # All of cos t sin t dF/dt in one product, whose factors stay bounded (section 4.2, JVP rearrangement).
    value, tangent = jax.jvp(
        lambda x, t: network(unweighted(target_params), x, t, **cond),
        (x, t),
        (combine((cos * sin, dx)), cos * sin),
    )
    warmup = tangent_warmup(step, config.tangent_warmup)
    g = combine(
        (-jnp.square(cos) * sigma_data, value),
        (jnp.square(cos), dx),
        (-warmup * cos * sin, x),
        (-warmup * sigma_data, tangent),
    )
    norm = jnp.sqrt(mean_square(g) * g[0].size)
    target = jax.lax.stop_gradient(combine((1, value), (1 / (norm + config.tangent_c), g)))
    error = mean_square(network(unweighted(params), x, t, **cond) - target)
    loss = jnp.mean(weigh_levels(params, error, sigma))
    return loss, {"loss": loss, "tangent_norm": jnp.mean(norm)}
