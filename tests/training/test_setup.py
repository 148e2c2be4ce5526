"""Runs whose loss does not go with their network: refused, where training would show nothing."""

import numpy as np
import pytest

from cmjax.training import config, setup

NETWORK = {
    "class": "PixelMeanFlow",
    "sample_size": 4,
    "in_channels": 1,
    "patch_size": 2,
    "bottleneck_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 1,
    "attention_head_dim": 4,
    "mlp_channels": 4,
    "num_class_embeds": 3,
    "context_tokens": [1, 1, 1, 1, 1],
}


@pytest.mark.parametrize(
    ("layers", "loss", "message"),
    [
        (0, {"null_class": 1}, "loss.null_class 1 .* set loss.null_class=3"),
        (1, {}, "second_head_layers 1 .* set loss.second_head=true"),
        (0, {"second_head": True}, "loss.second_head .* set network.second_head_layers"),
    ],
)
def test_a_loss_that_does_not_go_with_the_network(tmp_path, layers, loss, message):
    file = tmp_path / "d.npz"
    images = np.zeros((8, 4, 4, 1), np.uint8)
    np.savez(file, images=images, labels=np.arange(8) % 3)
    sections = {
        "network": {**NETWORK, "second_head_layers": layers},
        "scheduler": {"class": "FlowMapEulerDiscreteScheduler"},
        "loss": {"name": "imf", **loss},
        "data": {"source": str(file)},
        "run": {"batch_size": 4},
    }
    with pytest.raises(ValueError, match=message):
        setup.make_run(config.from_values(sections))
