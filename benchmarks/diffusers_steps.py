"""Single steps of the schedulers of diffusers, for benchmarks/samplers.py to time."""


def class_in_diffusers(name):
    """The class of this name in diffusers, also of those it has set aside; None for none."""
    import diffusers
    from diffusers.schedulers.deprecated import scheduling_karras_ve, scheduling_sde_vp

    diffusers.utils.logging.set_verbosity_error()  # of options that it changes
    for module in (scheduling_karras_ve, scheduling_sde_vp, diffusers):
        if hasattr(module, name):
            return getattr(module, name)
    return None


def their_step(scheduler, shape):
    """The second step of four of a scheduler of diffusers, as a function.

    Its schedulers count their steps: each call sets this one back to where the first step left it,
    which is a few microseconds of the time.
    """
    import torch

    x = torch.ones(shape)
    name = type(scheduler).__name__
    scheduler.set_timesteps(4, **THEIR_STEPS.get(name, {}))
    call = THEIR_CALLS.get(name, plain_call)
    call(scheduler, x, 0)
    after_first = dict(vars(scheduler))
    lists = {
        key: list(value) for key, value in after_first.items() if isinstance(value, list)
    }

    def step():
        vars(scheduler).update(after_first)
        vars(scheduler).update({key: list(value) for key, value in lists.items()})
        call(scheduler, x, 1)

    return step


def plain_call(scheduler, x, i):
    """A step of most schedulers of diffusers."""
    t = scheduler.timesteps[i]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, t)
    scheduler.step(x, t, x)


def repaint_call(scheduler, x, i):
    """A step of RePaint, which takes the known image and its mask."""
    scheduler.step(x, scheduler.timesteps[i], x, x, x)


def karras_ve_call(scheduler, x, i):
    """A step of Karras et al. 2022, whose noise is added by a call of its own."""
    sigma = scheduler.schedule[i]
    raised, raised_sigma = scheduler.add_noise_to_input(x, sigma)
    scheduler.step(x, raised_sigma, scheduler.schedule[i + 1], raised)


def score_sde_ve_call(scheduler, x, i):
    """A predictor and a corrector step, which are calls of their own."""
    images = x.reshape(len(x), 1, 1, -1)
    scheduler.step_correct(images, images)
    scheduler.step_pred(images, scheduler.timesteps[i], images)


def score_sde_vp_call(scheduler, x, i):
    """A step of the variance-preserving SDE, whose times are those of the samples."""
    images = x.reshape(len(x), 1, 1, -1)
    scheduler.step_pred(images, images, scheduler.timesteps[i])


THEIR_CALLS = {
    "RePaintScheduler": repaint_call,
    "KarrasVeScheduler": karras_ve_call,
    "ScoreSdeVeScheduler": score_sde_ve_call,
    "ScoreSdeVpScheduler": score_sde_vp_call,
}

# The default of this one allows two steps only.
THEIR_STEPS = {"SCMScheduler": {"intermediate_timesteps": None}}
