"""What a run says of itself at its start."""

import pytest
from flax import nnx

import cmjax
from cmjax.models.registry import network_class
from cmjax.training import reports
from cmjax.training.config import read_config


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("pictures_diffusers", "can open the model, after cmjax convert"),
        (
            "pictures",
            "time_scale 0.01 is cmjax's own, and always 1 in diffusers; patch_size 2",
        ),
    ],
)
def test_a_run_says_whether_diffusers_can_open_its_model(preset, said):
    config = read_config(preset)
    module_class, _ = network_class(config.network["class"])
    module = nnx.eval_shape(lambda: module_class(config.network_config(), rngs=nnx.Rngs(0)))
    _, params = nnx.split(module)
    scheduler = config.make_scheduler()
    model = cmjax.Model(lambda *_: None, params, scheduler, config.network_config())
    assert said in reports._exportable(model)
