"""Released models that are a `DiT`."""

from cmjax.models.dit import DIT_SIZES, DiTConfig

# Networks on the latents of 256x256 images, told times from 0 to 1 and the length of a step.
_LATENTS = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_class_embeds": 1000,
    "null_class": True,
    "time_scale": 0.001,
    "second_time": "span",
}

# Geng et al. 2025, arXiv 2505.13447: Gsunshine/meanflow.
MEAN_FLOWS = {"MF-B/4": DiTConfig(patch_size=4, **DIT_SIZES["B"], **_LATENTS)}
