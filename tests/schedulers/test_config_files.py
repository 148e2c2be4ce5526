"""Published `scheduler_config.json` files: siblings' options, old names, misspelt ones."""

import copy
import dataclasses
import pickle

import pytest

import cmjax
from cmjax.schedulers import SCHEDULERS, diffusers_names

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
# Class, and the options beyond its own that published files of it have.
PUBLISHED = [
    (
        "EulerAncestralDiscreteScheduler",
        {
            "clip_sample": False,
            "interpolation_type": "linear",
            "sample_max_value": 1.0,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
        },
    ),
    ("DDIMScheduler", {"skip_prk_steps": True, "interpolation_type": "linear"}),
    (
        "LCMScheduler",
        {
            "skip_prk_steps": True,
            "use_karras_sigmas": False,
            "timestep_type": "discrete",
            "sigma_min": None,
            "sigma_max": None,
        },
    ),
    ("PNDMScheduler", {"clip_sample": False, "tensor_format": "pt"}),
    ("TCDScheduler", {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
    ("HeunDiscreteScheduler", {"tensor_format": "pt", "trained_betas": None}),
]


@pytest.mark.parametrize(("name", "siblings"), PUBLISHED)
def test_options_of_siblings_change_nothing_and_are_written_again(name, siblings):
    own = {"_class_name": name, "_diffusers_version": "0.24.0", **BETAS}
    scheduler = cmjax.scheduler_from_config({**own, **siblings})
    assert scheduler == cmjax.scheduler_from_config(own)
    written = scheduler.to_config()
    assert siblings.items() <= written.items()
    assert cmjax.scheduler_from_config(written).to_config() == written


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_option_of_diffusers_is_taken_by_every_scheduler(name):
    cls = SCHEDULERS[name]
    known = {*cls.__dataclass_fields__, *cls.to_config(cls())}
    others = dict.fromkeys(diffusers_names.OPTIONS - known)
    scheduler = cls.from_config(others)
    assert scheduler == cls.from_config({})
    assert others.items() <= scheduler.to_config().items()


@pytest.mark.parametrize(
    ("name", "siblings"),
    [
        ("CMStochasticIterativeScheduler", {"timestep_spacing": "trailing"}),
        ("EulerAncestralDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerAncestralDiscreteScheduler", {"use_beta_sigmas": True}),
        ("HeunDiscreteScheduler", {"rescale_betas_zero_snr": True}),
        ("KDPM2DiscreteScheduler", {"rescale_betas_zero_snr": True}),
    ],
)
def test_what_diffusers_class_lacks_has_no_effect_in_a_file_of_diffusers(name, siblings):
    own = {"_class_name": name, "_diffusers_version": "0.42.1"}
    assert cmjax.scheduler_from_config({**own, **siblings}) == cmjax.scheduler_from_config(
        own
    )


def test_the_files_of_flax_classes_are_read():
    config = {"clip_sample": False, "prediction_type": "v_prediction"}
    flax = cmjax.scheduler_from_config({"_class_name": "FlaxDDIMScheduler", **config})
    assert flax == cmjax.DDIMScheduler.from_config(config)
    assert flax.to_config()["_class_name"] == "DDIMScheduler"
    flax = cmjax.scheduler_from_config({"_class_name": "FlaxKarrasVeScheduler", "s_max": 9})
    assert flax == cmjax.KarrasVeScheduler(s_max=9.0)


def test_a_seed_of_noise_is_none_or_a_number_and_of_no_effect():
    for seed in (None, 0, 7):
        config = {"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": seed}
        assert cmjax.scheduler_from_config(config) == cmjax.DPMSolverSDEScheduler()
    with pytest.raises(ValueError, match="noise_sampler_seed must be None or a number"):
        cmjax.scheduler_from_config({**config, "noise_sampler_seed": "x"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        # A misspelt option of the scheduler's own, and one of a sibling's.
        ({"clip_sampel": True}, "no option 'clip_sampel'; did you mean 'clip_sample'"),
        ({"skip_prk_step": True}, "'skip_prk_step'; did you mean 'skip_prk_steps'"),
        ({"colour": 1}, "no option 'colour'; known are num_train_timesteps, "),
        # Names that are spelt right are not taken for misspellings of another algorithm's.
        (
            {"_class_name": "UnCLIPScheduler"},
            "UnCLIPScheduler is a scheduler of diffusers that cmjax does not",
        ),
        ({"_class_name": "SASolverScheduler"}, "SASolverScheduler is a scheduler of diff"),
        (
            {"_class_name": "FlaxSASolverScheduler"},
            "FlaxSASolverScheduler is a scheduler of diff",
        ),
        ({"_class_name": ["DDIMScheduler"]}, "no scheduler ..DDIMScheduler..; known are"),
    ],
)
def test_misspelt_and_unknown_names_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        cmjax.scheduler_from_config({"_class_name": "DDIMScheduler", **config})


def test_the_kept_options_follow_a_scheduler_that_is_changed():
    scheduler = cmjax.scheduler_from_config({"_class_name": "DDIMScheduler", "snr": 0.1})
    changed = cmjax.schedulers.scheduler_like(scheduler, "DDIMScheduler", eta=1.0)
    assert changed.to_config()["snr"] == 0.1


# Schedulers of networks that take training times: each can sample the network of another.
OF_TRAINING_TIMES = [
    name for name, cls in SCHEDULERS.items() if "beta_start" in cls.__dataclass_fields__
]


@pytest.mark.parametrize("source", OF_TRAINING_TIMES)
def test_every_scheduler_of_training_times_is_made_from_every_other(source):
    betas = {"beta_start": 0.002, "beta_end": 0.01, "prediction_type": "v_prediction"}
    config = SCHEDULERS[source](**betas).to_config()
    for name in OF_TRAINING_TIMES:
        other = SCHEDULERS[name].from_config(config)
        assert betas.items() <= other.to_config().items(), name


def test_every_option_of_a_scheduler_is_known_to_the_others():
    for cls in SCHEDULERS.values():
        options = {field.name for field in dataclasses.fields(cls)}
        assert options <= diffusers_names.OPTIONS | diffusers_names.CALL_OPTIONS, cls


def test_eta_and_churn_are_not_taken_from_another_class():
    config = cmjax.DDIMScheduler(eta=0.0).to_config()
    assert cmjax.TCDScheduler.from_config(config).eta == cmjax.TCDScheduler().eta
    flax = {**config, "_class_name": "FlaxDDIMScheduler", "eta": 0.5}
    assert cmjax.DDIMScheduler.from_config(flax).eta == 0.5
    config = cmjax.EDMEulerScheduler(s_churn=3.0).to_config()
    assert cmjax.KarrasVeScheduler.from_config(config).s_churn == 80


@pytest.mark.parametrize(
    ("source", "name", "option", "value"),
    [
        (
            cmjax.DEISMultistepScheduler(),
            "DPMSolverMultistep",
            "algorithm_type",
            "dpmsolver++",
        ),
        (cmjax.UniPCMultistepScheduler(), "DPMSolverSinglestep", "solver_type", "midpoint"),
        (cmjax.DPMSolverMultistepScheduler(), "UniPCMultistep", "solver_type", "bh2"),
        (cmjax.DDPMScheduler(), "UniPCMultistep", "variance_type", None),
        (
            cmjax.DDPMScheduler(variance_type="learned_range"),
            "DPMSolverMultistep",
            "variance_type",
            "learned_range",
        ),
    ],
)
def test_names_of_other_solvers_are_read_as_in_diffusers(source, name, option, value):
    other = SCHEDULERS[f"{name}Scheduler"].from_config(source.to_config())
    assert getattr(other, option) == value


def test_schedulers_with_options_of_others_are_copied():
    config = {"_class_name": "EulerDiscreteScheduler", "solver_order": 2}
    scheduler = cmjax.DDIMScheduler.from_config(config)
    copies = (
        pickle.loads(pickle.dumps(scheduler)),
        copy.copy(scheduler),
        copy.deepcopy(scheduler),
    )
    for copied in copies:
        assert copied == scheduler
        assert copied.to_config() == scheduler.to_config()


def test_options_without_a_class_name_say_how_to_read_them():
    # As `dict(scheduler.config)` of a scheduler that diffusers has made without a file.
    config = {"num_train_timesteps": 500}
    with pytest.raises(ValueError, match="no '_class_name'.*DDIMScheduler.from_config"):
        cmjax.scheduler_from_config(config)
    assert cmjax.DDIMScheduler.from_config(config).num_train_timesteps == 500
