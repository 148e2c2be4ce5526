"""What a run says of itself at its start."""

import pytest
from flax import nnx

import cmjax
from cmjax.models.registry import architecture
from cmjax.training import reports
from cmjax.training.config import from_values, read_config


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
    assert said in said_of(read_config(preset))


@pytest.mark.parametrize(
    ("scheduler", "loss", "said"),
    [
        (
            "FlowMatchEulerDiscreteScheduler",
            "flow_matching",
            "can open the model, after cmjax convert",
        ),
        (
            "EDMHeunScheduler",
            "denoising",
            "cannot open the model: a DiTPipeline takes a scheduler of diffusers, which has no",
        ),
    ],
)
def test_diffusers_has_a_pipeline_for_its_transformer_too(scheduler, loss, said):
    sizes = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8}
    values = {
        "network": {"class": "DiTTransformer2D", **sizes},
        "scheduler": {"class": scheduler},
        "loss": {"name": loss},
    }
    assert said_of(from_values(values)).startswith(said)


def said_of(config):
    module_class, _ = architecture(config.network["class"])
    module = nnx.eval_shape(lambda: module_class(config.network_config(), rngs=nnx.Rngs(0)))
    _, params = nnx.split(module)
    scheduler = config.make_scheduler()
    model = cmjax.Model(lambda *_: None, params, scheduler, config.network_config())
    return reports._exportable(model)
