"""Classes of diffusers with what their callers must do, so that each step takes a given noise."""

import math

import diffusers
import torch

# diffusers exports these beside transformers only.
from diffusers.schedulers.deprecated import scheduling_karras_ve as karras_ve
from diffusers.schedulers.deprecated import scheduling_sde_vp as sde_vp


class BrownianPath:
    """The noise of a Brownian path over sigma, as diffusers' sampler of it, in steps of two calls.

    Attributes:
        fresh: standard normal noise of the next call.
    """

    fresh: torch.Tensor

    def __init__(self):
        self.start = None

    def __call__(self, sigma: torch.Tensor, next_sigma: torch.Tensor) -> torch.Tensor:
        """Returns W(sigma) - W(next_sigma), divided by its standard deviation."""
        if self.start != sigma:
            # From the start to the middle.
            self.start = sigma
            self.middle = next_sigma
            self.increment = math.sqrt(sigma - next_sigma) * self.fresh
        else:
            # From the start again, to the end: the path goes on from the middle.
            rest = math.sqrt(self.middle - next_sigma) * self.fresh
            self.increment = self.increment + rest
        return self.increment / math.sqrt(sigma - next_sigma)


class DPMSolverSDEScheduler(diffusers.DPMSolverSDEScheduler):
    """diffusers' class, with a path of given noise in place of a tree of seeds."""

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.noise_sampler = BrownianPath()

    @property
    def sigmas_of_calls(self) -> torch.Tensor:
        """The levels where the network is called, and the end: every second one is a middle."""
        sigmas = self.sigmas.clone()
        sigmas[1:-1:2] = (sigmas[:-2:2] * sigmas[1:-1:2]).sqrt()
        return sigmas


class KarrasVeScheduler(karras_ve.KarrasVeScheduler):
    """diffusers' class in the loop of the pipeline that it was made for, a call at a time.

    The levels are those of the paper. In diffusers they are their squares, from `sigma_max ** 2` on
    for samples that start at `sigma_max`: it takes the times of Karras et al. 2022, table 1, column
    VE, for levels, where the level is the root of the time.
    """

    def set_timesteps(self, num_inference_steps: int):
        super().set_timesteps(num_inference_steps)
        self.num_steps = num_inference_steps
        self.steps = [*self.schedule.sqrt().flip(0), torch.tensor(0.0)]

        # Where the network is called: at the raised start of each step, and at its end.
        calls = []
        for start, end in zip(self.steps[:-1], self.steps[1:], strict=True):
            _, raised = self.add_noise_to_input(torch.zeros(1), start)
            calls += [raised, end]
        self.sigmas = torch.stack(calls)
        self.timesteps = self.sigmas[:-1] / 2
        self.init_noise_sigma = float(self.sigmas[0])
        self.call = 0

    def step(self, model_output, timestep, sample):
        del timestep
        self.num_inference_steps = self.num_steps
        step, is_second = divmod(self.call, 2)
        levels = self.sigmas[2 * step : 2 * step + 2]
        self.call += 1
        if not is_second:
            self.start = sample
            self.first = super().step(model_output, *levels, sample)
            return self.first

        # The correction, and the noise ahead of the next step.
        corrected = self.step_correct(
            model_output, *levels, self.start, sample, self.first.derivative
        )
        noised, _ = self.add_noise_to_input(corrected.prev_sample, self.steps[step + 1])
        return karras_ve.KarrasVeOutput(
            noised, corrected.derivative, corrected.pred_original_sample
        )


CLASSES = [DPMSolverSDEScheduler, KarrasVeScheduler, sde_vp.ScoreSdeVpScheduler]
STAND_INS = {cls.__name__: cls for cls in CLASSES}


def reference_class(name: str) -> type:
    """Returns the class of diffusers, or the one here that stands for it."""
    return STAND_INS.get(name) or getattr(diffusers, name)
