"""`scheduler_config.json` of well-known public models, by the name of the model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent.parent / "golden" / "published_schedulers.json"
FILES: Mapping[str, Mapping[str, Any]] = json.loads(PATH.read_text())

# Of another algorithm, for which cmjax has no scheduler.
OTHER_ALGORITHMS = {
    "THUDM/CogVideoX-2b": "CogVideoXDDIMScheduler",
    "kakaobrain/karlo-v1-alpha, its prior": "UnCLIPScheduler",
    "stabilityai/stable-cascade": "DDPMWuerstchenScheduler",
    "amused/amused-512": "AmusedScheduler",
    "MiniMaxAI/MiniMax-H3": "MiniMaxH3Scheduler",
}

# Of categories, not floats, by the class that opens them.
CATEGORIES = {"microsoft/vq-diffusion-ithq": "VQDiffusionScheduler"}

# With an option that no scheduler of diffusers has: what it does is known to that model's code.
OTHER_OPTIONS = {"MMAudio, large_44k_v2": "use_reference_discrete_timesteps"}


def steps_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `set_timesteps` for a run of four steps, as the model's pipeline has."""
    if config.get("use_dynamic_shifting"):
        # Which depends on the size of the image.
        return {"num_inference_steps": 4, "mu": 0.8}

    # N = 1 scales the network's time, and leaves no grid: this model's pipeline gives its levels.
    if config.get("num_train_timesteps") == 1:
        return {"sigmas": [1.0, 0.75, 0.5, 0.25]}
    return {"num_inference_steps": 4}
