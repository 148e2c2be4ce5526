"""`UNet2D` beside diffusers' `UNet2DModel`: every tensor drawn, loaded through the real reader."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmjax.checkpoints import diffusers as reader
from cmjax.models import PRESETS
from tests.support.draws import draws
from tests.support.torch_networks import SMALL, draw_network

TOLERANCE = 1e-4  # of the output's standard deviation


def convert(network, folder, **options):
    network.save_pretrained(folder)
    return reader.open_unet(Path(folder)).load(**options)


def inputs(network, batch=2):
    size, channels = network.config.sample_size, network.config.in_channels
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, channels)).astype(np.float32)
    t = np.array([-1553.6, 1095.5, 250.0, 3.3], np.float32)[:batch]
    classes = network.config.num_class_embeds
    return (
        x,
        t,
        None if classes is None else rng.integers(0, classes, batch, dtype=np.int32),
    )


def torch_output(network, x, t, labels):
    with torch.no_grad():
        labels = None if labels is None else torch.from_numpy(labels)
        return network(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), labels
        ).sample.permute(0, 2, 3, 1)


def difference(network, model, batch=2):
    """Largest difference of the outputs over the standard deviation."""
    x, t, labels = inputs(network, batch)
    expected = torch_output(network, x, t, labels).numpy()
    cond = {} if labels is None else {"class_labels": jnp.asarray(labels)}
    actual = jax.jit(model.apply_fn)(model.params, x, t, **cond)
    assert np.std(expected) > 1e-2
    return np.abs(np.asarray(actual) - expected).max() / np.std(expected)


DOWN = ("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D")
UP = ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D")


@st.composite
def options(draw):
    levels = draw(st.integers(1, 3))
    return {
        "sample_size": draw(st.sampled_from([4, 8])),
        "in_channels": draw(st.integers(1, 4)),
        "out_channels": draw(st.integers(1, 4)),
        "center_input_sample": draw(st.booleans()),
        "down_block_types": tuple(draw(st.sampled_from(DOWN)) for _ in range(levels)),
        "up_block_types": tuple(draw(st.sampled_from(UP)) for _ in range(levels)),
        "block_out_channels": tuple(
            draw(st.sampled_from([8, 16, 24])) for _ in range(levels)
        ),
        "layers_per_block": draw(st.integers(1, 2)),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "attention_head_dim": draw(st.sampled_from([None, 1, 4, 8])),
        "norm_num_groups": draw(st.sampled_from([1, 2, 4])),
        "attn_norm_num_groups": draw(st.sampled_from([None, 2, 8])),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "num_class_embeds": draw(st.sampled_from([None, 1, 5])),
        "flip_sin_to_cos": draw(st.booleans()),
        "freq_shift": draw(st.sampled_from([0, 1])),
    }


@settings(max_examples=draws(8), deadline=None, suppress_health_check=list(HealthCheck))
@given(options=options())
def test_random_networks(options):
    check_parity(options)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(options=options())
def test_many_random_networks(options):
    check_parity(options)


def check_parity(options):
    network = draw_network(**options)
    with tempfile.TemporaryDirectory() as folder:
        assert difference(network, convert(network, folder)) <= TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {},
        {
            "down_block_types": DOWN[1:],
            "up_block_types": UP[:0:-1],
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
        {"resnet_time_scale_shift": "scale_shift"},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
        {"num_class_embeds": 7, "attention_head_dim": None},
    ],
)
def test_every_intermediate_activation(change, tmp_path):
    """Outputs of the blocks one by one: an error shows where it is made."""
    network = draw_network(**{**SMALL, **change})
    model = convert(network, tmp_path)
    theirs = {}

    def keep(name, module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        theirs[name] = output.numpy()

    for name, module in network.named_modules():
        if name.count(".") in (0, 1, 2, 3) and name:
            module.register_forward_hook(functools.partial(keep, name))
    x, t, labels = inputs(network)
    torch_output(network, x, t, labels)

    from flax import nnx

    from cmjax.models import UNet2D

    module = UNet2D(model.config, rngs=nnx.Rngs(0))
    nnx.update(module, model.params)
    ours = {}
    ends = ("conv_in", "mid_block", "conv_norm_out")
    spied = [name for name in theirs if name.split(".")[-1].isdigit() or name in ends]

    class Spy(nnx.Module):
        def __init__(self, name, inner):
            self.name = name
            self.inner = inner

        def __getattr__(self, attribute):
            return getattr(self.inner, attribute)

        def __call__(self, *args):
            ours[self.name] = self.inner(*args)
            return ours[self.name]

    for name in spied:
        *parents, last = name.split(".")
        owner = functools.reduce(part_of, parents, module)
        spy = Spy(name, part_of(owner, last))
        if last.isdigit():
            owner[int(last)] = spy
        else:
            setattr(owner, last, spy)
    module(x, t, class_labels=None if labels is None else jnp.asarray(labels))
    assert len(ours) >= 10
    for name, value in ours.items():
        expected = theirs[name]
        expected = expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected
        if expected.shape != value.shape:  # diffusers' attention gives pixels in a row
            expected = expected.reshape(value.shape)
        np.testing.assert_allclose(
            value, expected, atol=TOLERANCE * np.std(expected), rtol=0, err_msg=name
        )


def part_of(module, name):
    """A submodule, by its attribute or by its place in a list."""
    return module[int(name)] if name.isdigit() else getattr(module, name)


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_released_architectures(preset, tmp_path, capsys):
    written = reader.config_to_diffusers(PRESETS[preset])
    network = draw_network(
        **{key: value for key, value in written.items() if key[0] != "_"}
    )
    model = convert(network, tmp_path)
    assert model.config == PRESETS[preset]
    found = difference(network, model, batch=1)
    with capsys.disabled():
        count = sum(parameter.numel() for parameter in network.parameters())
        print(f"\n{preset}: {count:,} parameters, difference {found:.2e}")
    assert found <= TOLERANCE
