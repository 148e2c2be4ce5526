"""Shared base of samplers of flow-matching models: all of diffusers' options for their levels."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from cmjax.arrays import concrete
from cmjax.configs import is_finite, shown
from cmjax.parametrization import FlowMatching
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.flow import (
    FlowScheduler,
    flow_levels,
    shifted,
    stretched,
    unshifted_sigmas,
)
from cmjax.schedulers.grids import grid_option, respaced
from cmjax.schedulers.levels import Levels, exactly_one
from cmjax.schedulers.table import TableState


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class FlowMatchScheduler(FlowScheduler):
    """A sampler of flow matching, `x = (1 - sigma) x0 + sigma z`, with options for its levels.

    The network's time input is `N sigma`, and its output `z - x0`; inverted, these are
    `N (1 - sigma)` and `x0 - z`.

    Attributes:
        shift: how far the levels are moved towards noise (Esser et al. 2024, equation 23); 1 is not
            at all. Without effect where shifting is dynamic.
        use_dynamic_shifting: take the shift from the argument `mu` of `set_timesteps`.
        base_shift: mu for images of `base_image_seq_len` tokens (see `mu_of`).
        max_shift: mu for images of `max_image_seq_len` tokens.
        base_image_seq_len: a number of tokens.
        max_image_seq_len: another number of tokens.
        invert_sigmas: whether the network's time grows with the signal instead (Mochi).
        shift_terminal: stretch the shifted levels so that this is the lowest; None leaves them.
        use_karras_sigmas: replace the levels by those of Karras et al. 2022, equation 5, with the
            same ends.
        use_exponential_sigmas: replace the levels by equal steps of log sigma.
        use_beta_sigmas: replace the levels by quantiles of a beta distribution (Lee et al. 2024),
            close together at both ends.
        time_shift_type: the shift is "exponential", exp(mu), or "linear", mu itself.

    Raises:
        ValueError: for values outside their domain.
    """

    # A shift that depends on the size of the image.
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    # What follows the shift.
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    time_shift_type: str = "exponential"

    _domains = {
        "base_shift": (-1e6, 1e6),
        "max_shift": (-1e6, 1e6),
        "base_image_seq_len": (1, 2**31 - 1),
        "max_image_seq_len": (1, 2**31 - 1),
        "time_shift_type": ("exponential", "linear"),
    }

    def __post_init__(self):
        super().__post_init__()
        grid_option(self)  # at most one
        if self.base_image_seq_len == self.max_image_seq_len:
            raise ValueError(
                "base_image_seq_len and max_image_seq_len must differ, got "
                f"{self.base_image_seq_len} for both"
            )
        terminal = self.shift_terminal
        if terminal is not None and not (is_finite(terminal) and 0 < terminal < 1):
            raise ValueError(
                f"shift_terminal must be a number between 0 and 1, or null, got {terminal!r}"
            )

    @property
    def parametrization(self) -> FlowMatching:
        """The straight path, with the network's time."""
        return FlowMatching(self.num_train_timesteps, inverted=self.invert_sigmas)

    def mu_of(self, image_seq_len: int) -> float:
        """Returns the `mu` of images of so many tokens, as the pipelines of FLUX compute it.

        It is linear between `base_shift` and `max_shift`, and continues so beyond them.
        """
        # The ends are different numbers of tokens: `__post_init__` checks it.
        tokens = self.max_image_seq_len - self.base_image_seq_len
        slope = (self.max_shift - self.base_shift) / tokens
        return self.base_shift + slope * (image_seq_len - self.base_image_seq_len)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
    ) -> TableState:
        """Returns the state at the start of a run; give exactly one of the first three arguments.

        All of them are **before the shift**, which is applied once, here. What the state holds is
        after it: `state.sigmas` are the shifted levels and `state.timesteps` the network's times
        of these. So levels that are shifted already, such as the `sigmas` of another state, are
        given to a scheduler without a shift: `dataclasses.replace(scheduler, shift=1.0,
        use_dynamic_shifting=False, shift_terminal=None)`. diffusers shifts the levels of explicit
        `timesteps`, but passes the timesteps to the network as they are; for a model that needs
        this, `state.replace(timesteps=...)`.

        Args:
            num_inference_steps: number of levels, equally spaced before the shift.
            timesteps: or N times the noise levels, in strictly descending order, also where
                `invert_sigmas` passes N minus these to the network.
            sigmas: or the noise levels, in (0, 1], in strictly descending order.
            mu: with `use_dynamic_shifting`, the amount of the shift, such as `mu_of(tokens)`; it
                may be traced, so that other sizes of images compile nothing.

        Raises:
            ValueError: if not exactly one is given, `mu` is missing or of no use, or for values
                that break these rules.
        """
        if mu is None:
            return super().set_timesteps(
                num_inference_steps, timesteps=timesteps, sigmas=sigmas
            )
        name, value = exactly_one(
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )
        levels = self._shifted_levels(name, value, self._shift_at(mu))
        return self._state(self.calls(levels), self.weights(levels))

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the shifted levels, ending at 0; for schedulers whose shift needs no `mu`."""
        return self._shifted_levels(name, value, self._shift_at(None))

    def _shift_at(self, mu):
        """The shift of a run: the field, or with dynamic shifting what `mu` says."""
        if not self.use_dynamic_shifting:
            if mu is not None:
                raise ValueError(
                    f"mu={shown(mu)} has no effect without use_dynamic_shifting; leave mu out, or "
                    "set shift instead"
                )
            return self.shift

        if mu is None:
            raise ValueError(
                "use_dynamic_shifting needs mu: give state=scheduler.set_timesteps(n, "
                "mu=scheduler.mu_of(tokens)), or use_dynamic_shifting=False and shift=exp(mu)"
            )
        known = concrete(mu)
        exponential = self.time_shift_type == "exponential"
        low, high = (-13.8, 13.8) if exponential else (1e-6, 1e6)
        if known is not None and not (known.shape == () and is_finite(mu, low, high)):
            raise ValueError(
                f"mu must be a number from {low:g} to {high:g}, got {shown(mu)}"
            )
        mu = jnp.asarray(mu, jnp.float32)
        return jnp.exp(mu) if exponential else mu

    def _shifted_levels(self, name, value, shift):
        """The levels of a run, ending at 0: shifted, stretched, and on another grid, in turn."""
        # The lowest of equally spaced levels is shifted twice, as in diffusers: once here, and once
        # with all the others. With dynamic shifting it is shifted once.
        lowest = 1 / self.num_train_timesteps
        if not self.use_dynamic_shifting:
            lowest = shifted(lowest, self.shift)

        unshifted = unshifted_sigmas(self.num_train_timesteps, name, value, lowest)
        sigmas = shifted(unshifted, shift)
        if self.shift_terminal is not None:
            sigmas = stretched(sigmas, self.shift_terminal)
        return flow_levels(self.parametrization, respaced(self, sigmas))
