"""Names of diffusers are errors that say what takes their place."""

import copy
import pickle

import jax
import jax.numpy as jnp
import pytest

import cmjax
from cmjax import former_names
from cmjax.schedulers import StepOutput

CATEGORIES = cmjax.VQDiffusionScheduler(num_vec_classes=3)


class Broken(cmjax.DDIMScheduler):
    @property
    def init_noise_sigma(self):
        return self.betass


@pytest.mark.parametrize("scheduler", [cmjax.DDIMScheduler(), CATEGORIES])
def test_names_of_schedulers_and_states_say_what_to_do_instead(scheduler):
    state = scheduler.set_timesteps(2)
    for thing, ways in (
        (scheduler, former_names.OF_SCHEDULERS),
        (state, former_names.OF_STATES),
        (StepOutput(jnp.ones(1), jnp.ones(1)), former_names.OF_OUTPUTS),
    ):
        for name, way in ways.items():
            with pytest.raises(AttributeError) as caught:
                getattr(thing, name)
            assert str(caught.value) == (
                f"'{type(thing).__name__}' object has no attribute '{name}'; {way}"
            )
            assert not hasattr(thing, name)


def test_other_names_have_the_errors_of_python():
    scheduler = cmjax.DDIMScheduler()
    with pytest.raises(AttributeError, match="no attribute 'set_timestep'$"):
        scheduler.set_timestep  # noqa: B018

    # A property's own error is not hidden.
    with pytest.raises(AttributeError, match="no attribute 'betass'$"):
        Broken().init_noise_sigma  # noqa: B018


def test_schedulers_and_states_are_copied_as_before():
    scheduler = cmjax.DDIMScheduler(eta=0.5)
    assert pickle.loads(pickle.dumps(scheduler)) == copy.deepcopy(scheduler) == scheduler
    state = pickle.loads(pickle.dumps(scheduler.set_timesteps(2)))
    assert copy.copy(state).scheduler == scheduler
    output = jax.tree.map(jnp.sum, StepOutput(jnp.ones(2), jnp.ones(2)))
    assert output.denoised == 2


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("FlaxDDIMScheduler", "; use cmjax.DDIMScheduler, or cmjax.scheduler_from_config"),
        ("FlaxPNDMScheduler", "; use cmjax.PNDMScheduler"),
        ("FlaxAutoencoderKL", "; use vae = cmjax.load_autoencoder"),
        ("AutoencoderTiny", "; use vae = cmjax.load_autoencoder"),
        ("FlaxUNet2DConditionModel", "; cmjax has no such class of diffusers: keep your"),
        ("FlaxStableDiffusionPipeline", "; cmjax has no pipelines: "),
        ("ConsistencyModelPipeline", "; cmjax has no pipelines: "),
        ("sampel", "$"),
    ],
)
def test_names_of_the_package_say_what_to_do_instead(name, way):
    with pytest.raises(AttributeError, match=f"cmjax' has no attribute '{name}'{way}"):
        getattr(cmjax, name)
