"""Measures what guidance does to a mixture of two classes, in closed form; no network, no data.

    python benchmarks/guidance.py

The classes are N(1, 0.2^2) and N(-1, 0.2^2), of equal weight, in one dimension. There the ODE keeps
the order of samples, so that the consistency function of the mixture is a map of quantiles.
"""

import click
import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.guidance import classifier_free

MEAN = 1.0
STD = 0.2
NUM = 20_000
SIGMA_MAX = 80.0
LEVELS = (5.0, 1.0, 0.3)
BOUND = 2.5  # as clip_denoised bounds images, a little beyond all data


def class_denoiser(x, sigma):
    """E[x0 | x] in the class at 1."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def denoised(params, x, sigma, class_labels):
    """E[x0 | x] in the class at 1 (label 0) or of both (label 1)."""
    del params
    mine = class_denoiser(x, sigma)
    other = -class_denoiser(-x, sigma)
    share = jax.nn.sigmoid(2 * MEAN * x / (STD**2 + sigma**2))
    return jnp.where(class_labels == 0, mine, share * mine + (1 - share) * other)


def class_consistency(x, sigma, std=STD):
    """Where the ODE of the class at 1 ends, from x at the level sigma."""
    return MEAN + std / np.sqrt(std**2 + sigma**2) * (x - MEAN)


def mixture_consistency(x, sigma, std=STD):
    """Where the ODE of the mixture ends, from x at the level sigma: the same quantile."""
    spread = np.sqrt(std**2 + sigma**2)
    ends = np.linspace(-MEAN - 8 * std, MEAN + 8 * std, 20_001)
    return np.interp(_cumulative(x, spread), _cumulative(ends, std), ends)


def _cumulative(x, spread):
    def normal(z):
        return np.asarray(jax.scipy.special.ndtr(jnp.asarray(z, jnp.float64)))

    return (normal((x - MEAN) / spread) + normal((x + MEAN) / spread)) / 2


def extrapolated(z, scale, levels, bound=np.inf, std=STD):
    """Consistency sampling with an extrapolated f, f64[N]; its x0 is clipped to +-bound."""
    rng = np.random.default_rng(1)
    x0 = 0.0
    for i, sigma in enumerate(levels):
        x = x0 + sigma * (z if i == 0 else rng.normal(size=len(z)))
        alone = mixture_consistency(x, sigma, std)
        x0 = alone + scale * (class_consistency(x, sigma, std) - alone)
        x0 = np.clip(x0, -bound, bound)
    return x0


def guided_ode(z, scale, **options):
    """Samples of the guided denoiser under Heun's method, f64[N]."""
    scheduler = cmjax.EDMHeunScheduler(sigma_max=SIGMA_MAX)
    path = scheduler.parametrization
    network = cmjax.testing.network_of(path, denoised)
    guided = classifier_free(
        network, scale, null={"class_labels": 1}, parametrization=path, **options
    )
    shape = (len(z), 1)
    samples = cmjax.sample(
        jax.random.key(0),
        guided,
        None,
        scheduler,
        shape,
        num_inference_steps=100,
        cond={"class_labels": jnp.zeros(len(z), jnp.int32)},
        init=SIGMA_MAX * jnp.asarray(z, jnp.float32)[:, None],
    )
    return np.asarray(samples, np.float64)[:, 0]


def tilted(scale):
    """Mean and standard deviation of the density `p(x) p(class | x)^scale`, normalised."""
    x = np.linspace(-5, 5, 200_001)
    mine = np.exp(-((x - MEAN) ** 2) / (2 * STD**2))
    both = mine + np.exp(-((x + MEAN) ** 2) / (2 * STD**2))
    density = both * (mine / both) ** scale
    density /= density.sum()
    mean = (density * x).sum()
    return mean, np.sqrt((density * (x - mean) ** 2).sum())


def beyond(samples, std=STD):
    """The share that is more than five standard deviations away from its class."""
    return (np.abs(samples - MEAN) > 5 * std).mean()


def row(samples):
    """The share far away, the mean and the standard deviation, as text."""
    return f"{beyond(samples):.1%}, {samples.mean():.3f}, {samples.std():.3f}"


@click.command()
def main() -> None:
    """Prints the tables of docs/howto/guided_consistency.md: share far away, mean, deviation."""
    with jax.enable_x64(True):
        _table()
        _table_of_narrower_classes()


def _table():
    z = np.random.default_rng(0).normal(size=NUM)
    print(
        "scale | guided ODE | one call of f | f at 5, 1, 0.3 | the same, clipped | tilted"
    )
    for scale in (1.0, 1.5, 2.0, 3.0):
        columns = [
            guided_ode(z, scale),
            extrapolated(z, scale, [SIGMA_MAX]),
            extrapolated(z, scale, LEVELS),
            extrapolated(z, scale, LEVELS, BOUND),
        ]
        mean, std = tilted(scale)
        print(scale, *map(row, columns), f"{mean:.3f}, {std:.3f}", sep=" | ")


def _table_of_narrower_classes():
    z = np.random.default_rng(0).normal(size=NUM)
    print("\nstandard deviation of the classes | f in one call at 1.5 | at 2")
    for std in (0.2, 0.17, 0.15, 0.1):
        shares = [
            beyond(extrapolated(z, scale, [SIGMA_MAX], std=std), std)
            for scale in (1.5, 2.0)
        ]
        print(std, *(f"{share:.1%}" for share in shares), sep=" | ")


if __name__ == "__main__":
    main()
