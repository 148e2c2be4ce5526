"""What takes the place of names of diffusers: the way out that an AttributeError gives."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_STATE = "belongs to a run: state = scheduler.set_timesteps(n), then state."
_MEMORY = "a sampler's memory of earlier calls is state.memory"

OF_SCHEDULERS = {
    "create_state": "there is no state but that of a run: state = scheduler.set_timesteps(n)",
    "scale_model_input": "use scheduler.scale_input(state, sample); scheduler.predict calls it",
    "get_velocity": "use scheduler.parametrization.velocity(times, sample, noise)",
    "scale_noise": "use scheduler.parametrization.add_noise(times, sample, noise)",
    "add_noise_to_input": "scheduler.step adds that noise, before the next call",
    "step_correct": "scheduler.step predicts and corrects in turn; the state knows which is next",
    "step_pred": "scheduler.step predicts and corrects in turn; the state knows which is next",
    "set_sigmas": "scheduler.set_timesteps sets them too",
    "set_begin_index": (
        "start lower by scheduler.set_timesteps(timesteps=[...]); levels of flow matching are "
        "given before the shift"
    ),
    "config": "options are fields of the scheduler; scheduler.to_config() returns them as a dict",
    "save_pretrained": "write scheduler.to_config() to a file by json.dump",
    "from_pretrained": "read its file by json.load, for cmjax.scheduler_from_config(config)",
    "alphas_cumprod": "alpha and sigma of times are scheduler.parametrization.path(times)",
    "timesteps": f"it {_STATE}timesteps",
    "sigmas": f"it {_STATE}sigmas",
    "step_index": f"it {_STATE}step_index",
    "num_inference_steps": f"it {_STATE}num_steps, the number of network calls",
    "model_outputs": _MEMORY,
}
OF_STATES = {
    "num_inference_steps": "state.num_steps is the number of network calls",
    "init_noise_sigma": "it belongs to the scheduler: scheduler.init_noise_sigma",
    "common": "alpha and sigma of times are scheduler.parametrization.path(times)",
    "schedule": "noise levels are state.sigmas",
    "discrete_sigmas": "noise levels are state.sigmas",
    "ets": _MEMORY,
    "derivatives": _MEMORY,
    "model_outputs": _MEMORY,
    "cur_sample": _MEMORY,
}
OF_OUTPUTS = {
    "pred_original_sample": "the x0 estimate is output.denoised",
    "state": "scheduler.step returns the pair (state, output)",
}


def with_way_out(ways: Mapping[str, str]) -> Callable[[Any, str], Any]:
    """Returns a `__getattr__`, whose errors say what takes the place of a missing name.

    Args:
        ways: what to do instead, by name.
    """

    def __getattr__(self: Any, name: str) -> Any:
        # Python drops the first error, which may be that of a property: look again for it.
        try:
            return object.__getattribute__(self, name)
        except AttributeError as error:
            if name not in ways:
                raise
            message = f"{error}; {ways[name]}"
        raise AttributeError(message, name=name, obj=self)

    return __getattr__


def way_of_package(name: str, known: Iterable[str]) -> str:
    """Returns what takes the place of a name of diffusers' own, "" for other names.

    Args:
        name: such as "FlaxDDIMScheduler".
        known: the public names of cmjax.
    """
    plain = name.removeprefix("Flax")
    if plain in ("AutoencoderKL", "AutoencoderTiny"):
        return (
            "use vae = cmjax.load_autoencoder(source), vae.encode(images, key) and "
            "vae.decode(latents)"
        )
    if plain != name and plain in known:
        return f"use cmjax.{plain}, or cmjax.scheduler_from_config for its file"
    if name.endswith("Pipeline"):
        return (
            "cmjax has no pipelines: cmjax.load(path).sample(key, n) for models that it "
            "loads, cmjax.sample for a network of yours"
        )
    if plain != name:
        return (
            "cmjax has no such class of diffusers: keep your module, and pass what "
            "cmjax.from_linen(module, variables) returns to cmjax.sample"
        )
    return ""
