"""A mixture of two classes of normal data, whose denoisers are closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import testing

MEANS = np.array([[1.0, 0.4], [-1.0, -0.4]], np.float32)
STD = 0.5
NULL = {"class_labels": 2}  # the class of the whole mixture


def denoised(params, x, sigma, class_labels):
    """E[x0 | x] of a class, or of the mixture, for one sample `[2]`."""
    del params
    away = x[None] - MEANS
    of_classes = MEANS + STD**2 / (STD**2 + jnp.square(sigma)) * away
    distances = jnp.square(away).sum(-1) / (2 * (STD**2 + jnp.square(sigma)))
    shares = jax.nn.softmax(-distances)
    of_all = (shares[:, None] * of_classes).sum(0)
    return jnp.concatenate([of_classes, of_all[None]])[class_labels]


def network(parametrization):
    """The exact network `(params, x, t, class_labels) -> model_output`."""
    return testing.network_of(parametrization, denoised)


def guided_ends(x, sigma, labels, scale, interval=(0.0, np.inf), steps=400):
    """Where the ODE of the guided score ends, by Runge-Kutta of order 4 in float64.

    Independent of the package: `dx / d log sigma = x - D_w`, from `x0 + sigma z`, f64[B, 2].
    """
    means = MEANS.astype(np.float64)

    def slope(x, log_sigma):
        sigma = np.exp(log_sigma)
        total = STD**2 + sigma**2
        of_classes = means + STD**2 / total * (x[:, None] - means)  # [B, 2, 2]
        logits = -np.square(x[:, None] - means).sum(-1) / (2 * total)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        of_all = (shares[..., None] * of_classes).sum(1)
        mine = of_classes[np.arange(len(x)), labels]
        weight = np.where((interval[0] <= sigma) & (sigma <= interval[1]), scale, 1.0)
        weight = np.broadcast_to(weight, len(x))[:, None]
        return x - (of_all + weight * (mine - of_all))

    x = np.asarray(x, np.float64)
    levels = np.linspace(np.log(sigma), np.log(1e-5), steps + 1)
    for start, end in zip(levels[:-1], levels[1:], strict=True):
        h = end - start
        first = slope(x, start)
        second = slope(x + h / 2 * first, start + h / 2)
        third = slope(x + h / 2 * second, start + h / 2)
        fourth = slope(x + h * third, end)
        x = x + h / 6 * (first + 2 * second + 2 * third + fourth)
    return x
