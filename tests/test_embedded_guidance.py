"""Networks that learned guidance are given its scale, by the library and the command line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import cmjax
from cmjax.generation import Request, generate
from cmjax.guidance import embedded_scale
from cmjax.models import DiT, DiTConfig
from cmjax.schedulers import FlowMapEulerDiscreteScheduler

X = jnp.ones((3, 2))
T = jnp.zeros(3)


def network(params, x, t, class_labels=None, guidance_scale=None, guidance_interval=None):
    """Returns what it was given: the scale, and the ends of the interval."""
    scale = jnp.zeros(len(x)) if guidance_scale is None else guidance_scale
    ends = jnp.zeros((len(x), 2)) if guidance_interval is None else guidance_interval
    return params * jnp.concatenate([scale[:, None], ends], axis=-1)


def test_a_network_gets_a_number_or_one_per_sample():
    by_number = embedded_scale(network, 3)(1.0, X, T)
    np.testing.assert_array_equal(by_number, [[3, 0, 0]] * 3)
    per_sample = embedded_scale(network, np.array([1.0, 2.0, 3.0]), (0.25, 0.5))(1.0, X, T)
    np.testing.assert_array_equal(
        per_sample, [[1, 0.25, 0.5], [2, 0.25, 0.5], [3, 0.25, 0.5]]
    )

    # A wrapper takes what the network takes.
    def wrapped(params, x, *times, **cond):
        return network(params, x, *times, **cond)

    through = embedded_scale(wrapped, 2.0, (0.25, 0.5))(1.0, X, T)
    np.testing.assert_array_equal(through, [[2, 0.25, 0.5]] * 3)

    # Conditioning that is given counts more, and a scale may be traced.
    given = embedded_scale(network, 3)(1.0, X, T, guidance_scale=jnp.full(3, 5.0))
    np.testing.assert_array_equal(given[:, 0], [5, 5, 5])
    traced = jax.jit(lambda w: embedded_scale(network, w)(1.0, X, T))(2.0)
    np.testing.assert_array_equal(traced[:, 0], [2, 2, 2])


def test_the_same_scale_gives_the_same_function():
    # `cmjax.sample` keeps its program by the network.
    assert embedded_scale(network, 3.0) is embedded_scale(network, 3.0)
    assert embedded_scale(network, [3, 2.5]) is embedded_scale(network, jnp.array([3, 2.5]))
    assert embedded_scale(network, np.ones(3)) is not embedded_scale(
        network, np.full(3, 2.0)
    )


def test_a_scale_of_another_batch_is_refused():
    # One number in a list was taken for all samples.
    for scale in ([2.0], [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"one per sample \(3,\), got shape"):
            embedded_scale(network, scale)(1.0, X, T)


def test_on_a_mesh_each_sample_gets_its_scale_on_its_device():
    def each(params, x, t, guidance_scale, guidance_interval):
        def one(x, scale, ends):
            return params * x * scale + ends[0]

        return jax.vmap(one)(x, guidance_scale, guidance_interval)

    guided = embedded_scale(each, [1.0, 2.0], (0.25, 0.5))
    mesh = jax.make_mesh((2,), ("data",))
    x = jax.device_put(jnp.ones((2, 3)), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        made = guided(1.0, x, jnp.zeros(2))
    np.testing.assert_array_equal(made, [[1.25] * 3, [2.25] * 3])


@pytest.mark.parametrize(
    ("scale", "interval", "message"),
    [
        (0.0, None, "scale must be a positive number, or one per sample"),
        (np.nan, None, "scale must be a positive number, or one per sample"),
        (np.ones((2, 2)), None, "scale must be a positive number, or one per sample"),
        (
            lambda sigma: sigma,
            None,
            "scale must be a number or one per sample: the network",
        ),
        (2.0, (0.5, 0.1), r"interval must be times .* lower one first.* got \(0.5, 0.1\)"),
        (2.0, (0.1, np.inf), r"interval must be times \(low, high\) from 0 .*0.1, inf\)"),
        (2.0, (-0.1, 0.5), r"interval must be times \(low, high\) from 0"),
        (2.0, 0.5, r"interval must be times \(low, high\) from 0"),
    ],
)
def test_misuse(scale, interval, message):
    with pytest.raises(ValueError, match=message):
        embedded_scale(network, scale, interval)


@pytest.fixture(scope="module")
def model():
    """A flow map that is given a scale, with all parameters drawn so that it matters."""
    config = DiTConfig(
        sample_size=4,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        num_class_embeds=2,
        second_time="span",
        guidance_embeds=True,
    )
    apply_fn, params = cmjax.from_nnx(DiT(config, rngs=nnx.Rngs(0)))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    params = jax.tree.unflatten(structure, drawn)
    return cmjax.Model(apply_fn, params, FlowMapEulerDiscreteScheduler(), config)


def test_models_tell_their_networks(model):
    key = jax.random.key(0)
    scale = jnp.full(2, 4.0)
    cond = {"class_labels": jnp.array([0, 1]), "guidance_scale": scale}
    network = (model.apply_fn, model.params, model.scheduler, (2, *model.sample_shape))
    expected = cmjax.sample(key, *network, cond=cond)
    np.testing.assert_array_equal(model.sample(key, 2, guidance=4.0), expected)

    # Without guidance it is given 1.
    alone = cmjax.sample(key, *network, cond={**cond, "guidance_scale": jnp.ones(2)})
    np.testing.assert_array_equal(model.sample(key, 2), alone)
    np.testing.assert_array_equal(model.sample(key, 2, guidance=1), alone)
    assert np.abs(np.asarray(alone - expected)).max() > 1e-3

    # In bulk too.
    request = Request(labels=[0, 1], guidance=4.0)
    images = generate(model, request, 2).images
    np.testing.assert_array_equal(images, cmjax.images.to_uint8(expected))
    with pytest.raises(ValueError, match="must be None for this network"):
        model.sample(key, 2, guidance=4.0, guidance_interval=(0.1, 0.7))


def test_a_recommended_scale_is_left_to_the_network(model):
    @dataclasses.dataclass(frozen=True)
    class Config(DiTConfig):
        guidance_scale: float = 8.5

    values = dataclasses.asdict(model.config)
    with_default = dataclasses.replace(model, config=Config(**values))
    assert with_default.guided() is model.apply_fn
    assert with_default.guided(1) is not model.apply_fn


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scales_of_no_meaning_are_refused_by_the_name_that_they_were_given_by(model, scale):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="^guidance must be a positive number"):
        model.sample(key, 2, guidance=scale)
    cond = {"class_labels": jnp.array([0, 1]), "guidance_scale": jnp.array([1.0, scale])}
    with pytest.raises(ValueError, match=r"cond\['guidance_scale'\] must be above 0"):
        model.sample(key, 2, cond=cond)


def test_intervals_are_named_as_they_were_given(model):
    with pytest.raises(
        ValueError, match="^guidance_interval must be None for this network"
    ):
        model.sample(jax.random.key(0), 2, guidance=2.0, guidance_interval=(0.1, 0.7))


@pytest.mark.parametrize(
    ("name", "argument"),
    [("class_labels", "labels"), ("guidance_scale", "guidance"), ("scale", "guidance")],
)
def test_arguments_of_other_names_are_said(model, name, argument):
    with pytest.raises(TypeError, match=f"no argument '{name}'; give {argument}="):
        model.sample(jax.random.key(0), 2, **{name: 1})


STD = 0.5  # of the data below
MEANS = jnp.array([1.0, -2.0])  # one for each class


def flow_map_of_classes(params, x, t, r, class_labels, guidance_scale, guidance_interval):
    """The exact flow map of Gaussian data, whose mean the guidance moves for its share of time."""
    t = t[:, None] / 1000
    r = r[:, None] / 1000
    share = guidance_interval[:, 1] - guidance_interval[:, 0]
    mean = MEANS[class_labels] * (1 + (guidance_scale - 1) * share)
    mean = mean[:, None]

    # x_t = (1 - t) x0 + t z is normal, and the flow keeps its quantiles.
    def std(time):
        return jnp.sqrt((1 - time) ** 2 * STD**2 + time**2)

    end = (1 - r) * mean + std(r) / std(t) * (x - (1 - t) * mean)
    return params * (x - end) / jnp.maximum(t - r, 1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    ("scale", "interval", "factor"),
    [
        (1.0, (0.0, 1.0), 1.0),  # scale 1 is no guidance,
        (3.0, (0.5, 0.5), 1.0),  # and neither is an empty interval
        (3.0, (0.0, 1.0), 3.0),
        (3.0, (0.25, 0.75), 2.0),
    ],
)
def test_guided_samples_have_the_moments_that_they_should(steps, scale, interval, factor):
    count = 4096
    labels = jnp.arange(count) % 2
    samples = cmjax.sample(
        jax.random.key(0),
        embedded_scale(flow_map_of_classes, scale, interval),
        jnp.float32(1),
        FlowMapEulerDiscreteScheduler(),
        (count, 1),
        num_inference_steps=steps,
        cond={"class_labels": labels},
    )
    for label, mean in enumerate(MEANS):
        # Within five standard errors, of 2,048 samples.
        found = samples[labels == label]
        assert found.mean() == pytest.approx(float(mean) * factor, abs=5 * STD / 45)
        assert found.std() == pytest.approx(STD, abs=5 * STD / 64)
