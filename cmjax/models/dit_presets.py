"""Released models that are a `DiT`."""

from cmjax.models.dit_config import DIT_SIZES, DiTConfig

# Networks on the latents of 256x256 images, with times from 0 to 1.
_LATENTS = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "time_scale": 0.001,
}
_CLASSES = {"num_class_embeds": 1000, "null_class": True}

# Geng et al. 2025, arXiv 2505.13447: Gsunshine/meanflow.
MEAN_FLOWS = {
    "MF-B/4": DiTConfig(
        patch_size=4, second_time="span", **DIT_SIZES["B"], **_LATENTS, **_CLASSES
    )
}


def _shortcut(size, **classes):
    return DiTConfig(
        patch_size=2, second_time="log_steps", **DIT_SIZES[size], **_LATENTS, **classes
    )


# Frans et al. 2024, arXiv 2410.12557: kvfrans/shortcut-models.
SHORTCUTS = {
    "Shortcut-B/2": _shortcut("B", **_CLASSES),
    "Shortcut-XL/2": _shortcut("XL", **_CLASSES),
    "Shortcut-B/2-CelebA": _shortcut("B"),
}
