"""What networks are called with and what they return: checked wherever a network is called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import cmjax
from cmjax import editing, parametrization
from cmjax.guidance import autoguidance, classifier_free
from cmjax.labels import check_class_labels
from cmjax.models import compute_in
from cmjax.networks import num_classes, parse_cond, takes
from cmjax.schedulers import SCHEDULERS
from tests.support import checkpoints

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 6).reshape(2, 3)
T = jnp.ones(2)
CM = cmjax.CMStochasticIterativeScheduler()
STATE = CM.set_timesteps(1)


def plain(params, x, t):
    return 0.1 * x


# Every public way of calling a network: function of a network and its conditioning.
DOORS = {
    "sample": lambda f, **cond: cmjax.sample(KEY, f, None, CM, (2, 3), cond=cond),
    "predict": lambda f, **cond: CM.predict(f, None, STATE, X, **cond),
    "consistency_function": lambda f, **cond: parametrization.consistency_function(
        f, None, CM, X, T, **cond
    ),
    "denoise": lambda f, **cond: editing.denoise(f, None, CM, X, 1.0, cond=cond),
    "autoguidance": lambda f, **cond: autoguidance(f, 2.0)((None, None), X, T, **cond),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda p, x, t: x[:, :1], r"model_output \(2, 1\), sample \(2, 3\)"),
        (lambda p, x, t: jnp.float32(1), r"model_output \(\), sample"),
        (lambda p, x, t: t, r"model_output \(2,\), sample"),
        (lambda p, x, t: x.astype(jnp.int32), "model_output must hold floats, got int32"),
        (
            lambda p, x, t: x.astype(jnp.complex64),
            "model_output must hold floats, got complex64",
        ),
        (lambda p, x, t: (x, t), "apply_fn must return one array"),
        (lambda p, x: x, r"apply_fn must take \(params, x, t\).* too many"),
        (lambda p, x, t, r: x, r"apply_fn must take \(params, x, t\).* missing.*'r'"),
        ("text", "apply_fn must be a function"),
        (linen.Dense(3), r"apply_fn is a Dense.*from_linen\(module, variables\)"),
        (nnx.Linear(3, 3, rngs=nnx.Rngs(0)), r"apply_fn is a Linear.*from_nnx\(module\)"),
    ],
)
def test_networks_that_are_none(door, network, message):
    with pytest.raises(ValueError, match=message):
        DOORS[door](network)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"x": X}, r"apply_fn must take \(params, x, t, x=...\).* multiple values"),
        (
            {"other": X},
            r"apply_fn must take .*other=.* unexpected keyword argument 'other'",
        ),
        (
            {"labels": jnp.ones(1)},
            r"cond\['labels'\] must have the leading axis.*2, got \(1,\)",
        ),
        ({"labels": ["a", "b"]}, r"cond\['labels'\] must be numbers"),
        ({"labels": np.array([2**32, 0])}, r"cond\['labels'\] has numbers beyond int32"),
        (
            {"guidance_scale": [2.0, np.nan]},
            r"cond\['guidance_scale'\] must be finite, got \[2.0, nan\]",
        ),
        (
            {"guidance_interval": np.float32([[0, 1], [0, np.inf]])},
            r"cond\['guidance_interval'\] must be finite",
        ),
    ],
)
def test_conditioning_of_another_batch_or_network(door, cond, message):
    with pytest.raises(ValueError, match=message):
        DOORS[door](plain, **cond)


def test_a_flow_map_of_one_time_is_told_what_it_lacks():
    scheduler = SCHEDULERS["FlowMapEulerDiscreteScheduler"]()
    for apply_fn, params in ((plain, None), cmjax.from_nnx(OneTime(nnx.Rngs(0)))):
        with pytest.raises(ValueError, match=r"apply_fn must take \(params, x, t, r\)"):
            cmjax.sample(KEY, apply_fn, params, scheduler, (2, 3))


class OneTime(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jax.random.normal(rngs.params(), (1,)))

    def __call__(self, x, t):
        return self.scale * x


@pytest.mark.parametrize("name", ["CTMScheduler", "FlowMapEulerDiscreteScheduler"])
def test_networks_of_two_times_give_no_x0_of_one_level(name):
    with pytest.raises(ValueError, match=f"scheduler is a {name}, whose networks take two"):
        parametrization.consistency_function(plain, None, SCHEDULERS[name](), X, T)


# Classes.


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2, 0], "the model's classes are 0..1, got 2"),
        ([-1, 0], "the model's classes are 0..1, got -1"),
        ([np.nan, 0], "must be integers, the classes, got float64"),
        (jnp.array([1.0, 0]), "must be integers, the classes, got float32"),
        (np.array([2**32, 0]), "the model's classes are 0..1, got 4294967296"),
        ([True, False], "must be integers, the classes, got bool"),
        (["a", "b"], "must be numbers"),
    ],
)
def test_labels_beyond_the_classes(labels, message):
    model = checkpoints.model()
    shape = (2, 4, 4, 1)
    cond = {"class_labels": labels}
    run = (model.apply_fn, model.params, CM)
    with pytest.raises(ValueError, match=rf"cond\['class_labels'\].*{message}"):
        cmjax.sample(KEY, *run, shape, cond=cond)
    with pytest.raises(ValueError, match=message):
        editing.denoise(*run, jnp.zeros(shape), 1.0, cond=cond)
    with pytest.raises(ValueError, match=message):
        model.sample(KEY, 2, cond=cond)


def test_labels_are_one_per_sample_and_classes_known_by_the_network_itself():
    model = checkpoints.model()
    network = model.apply_fn.__wrapped__
    x = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(ValueError, match=r"class_labels must be one per sample, \(2,\)"):
        jax.eval_shape(
            lambda labels: network(model.params, x, T, class_labels=labels),
            jnp.zeros(1, int),
        )
    with pytest.raises(
        ValueError, match="class_labels: the model's classes are 0..1, got 7"
    ):
        jax.eval_shape(lambda: network(model.params, x, T, class_labels=np.array([0, 7])))


def test_traced_labels_that_are_no_classes_are_nan_and_never_another_class():
    model = checkpoints.model()
    x = jnp.ones((4, 4, 4, 1))
    labels = jnp.array([0, 2, -1, 1])
    made = model.apply_fn(model.params, x, jnp.ones(4), class_labels=labels)
    finite = np.isfinite(made).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(finite, [True, False, False, True])


def test_what_wraps_a_network_knows_its_classes():
    network = checkpoints.model().apply_fn
    solver = cmjax.EDMEulerScheduler()
    for wrapped in (
        jax.jit(network),
        compute_in(network, jnp.bfloat16),
        autoguidance(network, 2.0),
        classifier_free(network, 2.0, null={"class_labels": 1}),
        parametrization.adapt(network, CM, solver),
    ):
        assert num_classes(wrapped) == num_classes(network) == 2
    assert num_classes(plain) is None


def test_values_of_a_trace_are_not_looked_at():
    jax.eval_shape(
        lambda labels: check_class_labels("a", labels, 2), jnp.zeros(2, jnp.int32)
    )
    jax.eval_shape(lambda labels: parse_cond({"a": labels}, 2), jnp.zeros(2, jnp.int32))


def test_arguments_that_are_not_known_are_left_to_the_call():
    # Functions of C have no signature.
    assert takes(max, "guidance_interval")


def test_cond_given_as_one_argument_says_how_to_give_it():
    state, x = CM.init(jax.random.key(0), CM.set_timesteps(1), (2, 3))
    with pytest.raises(ValueError, match=r"argument 'cond'; to pass .* write \*\*cond"):
        CM.predict(lambda params, x, t: x, None, state, x, cond={"a": jnp.zeros(2)})
