"""Makes schedulers of diffusers compute what they mean to, to compare with the rest of them."""

import functools

import numpy as np
import torch


def mend_third_order(scheduler):
    """Makes third-order steps of diffusers what they mean to be.

    Of multistep solvers, its D2 is half of the second derivative: the steps are of second order.
    Of the SDE, 1/2 is subtracted where it is to be added (compare phi_3 of the ODE with exponent
    2h): the steps do not converge.
    """
    for kind in ("multistep", "singlestep"):
        update = f"{kind}_dpm_solver_third_order_update"
        if hasattr(scheduler, update):
            mended = functools.partial(_third_order, scheduler, getattr(scheduler, update))
            setattr(scheduler, update, mended)


def _third_order(scheduler, update, outputs, *, sample, noise=None):
    options = {} if noise is None else {"noise": noise}
    result = update(outputs, sample=sample, **options)

    # The second derivative of the polynomial through the three outputs, times h^2.
    i = scheduler.step_index
    alphas, sigmas = scheduler._sigma_to_alpha_sigma_t(
        scheduler.sigmas[[i - 2, i - 1, i, i + 1]]
    )
    alphas = alphas.expand_as(sigmas)
    lambdas = torch.log(alphas) - torch.log(sigmas)
    singlestep = hasattr(scheduler, "order_list")
    h = lambdas[3] - lambdas[0 if singlestep else 2]
    slopes = torch.diff(torch.stack(outputs), dim=0) / torch.diff(lambdas[:3]).reshape(
        -1, *[1] * sample.ndim
    )
    second = 2 * h**2 * (slopes[1] - slopes[0]) / (lambdas[2] - lambdas[0])

    # What is missing of its weight, h int_0^1 exp(-h (1 - u)) u^2 / 2 du.
    algorithm = scheduler.config.algorithm_type
    if algorithm == "sde-dpmsolver++":
        phi = (1 - torch.exp(-2 * h) - 2 * h) / (2 * h) ** 2
        theirs = phi - 0.5 if singlestep else (phi - 0.5) / 2
        if singlestep and scheduler.config.solver_type == "midpoint":
            return result
        return result + alphas[3] * (phi + 0.5 - theirs) * second
    if singlestep:
        return result
    if algorithm == "dpmsolver++":
        return result + alphas[3] * ((1 - torch.exp(-h) - h) / h**2 + 0.5) / 2 * second
    return result - sigmas[3] * ((torch.exp(h) - 1 - h) / h**2 - 0.5) / 2 * second


def mend_pndm(scheduler):
    """Makes diffusers' PNDM go between the times of its list, with means of the noise.

    It goes N // n down, and puts the middle of a step N // n // 2 above its end, also where times
    are further apart than that. And it takes means of v, which have no meaning where the
    samples differ (huggingface/diffusers#14816).
    """
    # Middles of the steps, rounded down, in the list that starts with 12 Runge-Kutta calls.
    times = scheduler.timesteps.tolist()
    if not scheduler.config.skip_prk_steps:
        for first in (0, 4, 8):
            times[first + 1] = times[first + 2] = (times[first] + times[first + 3]) // 2
        scheduler.prk_timesteps = np.array(times[:12])
    scheduler.timesteps = torch.tensor(times)
    after = [*times[1:], -1]

    def span(call):
        """The times between which a call moves the sample."""
        is_multistep = scheduler.config.skip_prk_steps or call >= 12
        if scheduler.config.skip_prk_steps and call == 1 and len(times) > 1:
            return times[0], times[1]  # the second call of the first step
        if is_multistep:
            return times[call], after[call]
        first = call // 4 * 4
        return times[first], times[first + (1 if call - first < 2 else 3)]

    step = scheduler.step
    transfer = scheduler._get_prev_sample
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    scheduler.register_to_config(prediction_type="epsilon")

    def step_by_noise(output, t, sample):
        if is_velocity:
            variance = scheduler.alphas_cumprod[t]
            output = variance**0.5 * output + (1 - variance) ** 0.5 * sample
        return step(output, t, sample)

    def transfer_between_times(sample, start, end, output):
        return transfer(sample, *span(scheduler.counter), output)

    scheduler.step = step_by_noise
    scheduler._get_prev_sample = transfer_between_times
