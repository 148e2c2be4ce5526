"""The names that diffusers' `scheduler_config.json` files use, of schedulers and of options.

diffusers keeps the options of the scheduler that another one was made from (`from_config`), so a
published file holds options of sibling schedulers, which its own class ignores.

Source: the classes in `diffusers/schedulers` of diffusers 0.42, and the parameters of their
`__init__`. `tests/parity/test_scheduler_files.py` compares both tables with the installed version.
"""

# Every scheduler that diffusers has, those that cmjax has among them.
SCHEDULERS = frozenset(
    """
    AmusedScheduler BlockRefinementScheduler CMStochasticIterativeScheduler
    CogVideoXDDIMScheduler CogVideoXDPMScheduler ConsistencyDecoderScheduler
    CosineDPMSolverMultistepScheduler DDIMInverseScheduler DDIMParallelScheduler
    DDIMScheduler DDPMParallelScheduler DDPMScheduler DDPMWuerstchenScheduler
    DEISMultistepScheduler DPMSolverMultistepInverseScheduler
    DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler
    DiscreteDDIMScheduler EDMDPMSolverMultistepScheduler EDMEulerScheduler
    EntropyBoundScheduler EulerAncestralDiscreteScheduler EulerDiscreteScheduler
    FlowMapEulerDiscreteScheduler FlowMatchEulerDiscreteScheduler
    FlowMatchHeunDiscreteScheduler FlowMatchLCMScheduler HeliosDMDScheduler
    HeliosScheduler HeunDiscreteScheduler IPNDMScheduler KDPM2AncestralDiscreteScheduler
    KDPM2DiscreteScheduler KarrasVeScheduler LCMScheduler LMSDiscreteScheduler
    LTXEulerAncestralRFScheduler MiniMaxH3Scheduler PNDMScheduler PiflowScheduler
    RFD4ProteinaScheduler RePaintScheduler SASolverScheduler SCMScheduler
    ScoreSdeVeScheduler ScoreSdeVpScheduler TCDScheduler UnCLIPScheduler
    UniPCMultistepScheduler VQDiffusionScheduler
    """.split()
)

# Every option of any of them.
OPTIONS = frozenset(
    """
    algorithm_type alpha_cum_end alpha_cum_start base_image_seq_len base_shift beta_end
    beta_max beta_min beta_schedule beta_start block_length clip_denoised clip_sample
    clip_sample_range correct_steps corrector_k corrector_order corrector_selection
    corrector_selection_tau corrector_steps disable_corrector dynamic_thresholding_ratio
    editing_threshold entropy_bound eps eta euler_at_final final_sigmas_type
    final_step_size_scale flow_shift gamma gamma_cum_end gamma_cum_start
    interpolation_type invert_sigmas lambda_min_clipped lower_order_final mask_token_id
    masking_schedule max_image_seq_len max_shift minimal_topk n_grid noise_mode
    noise_sampler_seed num_inference_steps num_policy_substeps num_train_timesteps
    num_vec_classes original_inference_steps predict_x0 prediction_type predictor_order
    rescale_betas_zero_snr rho s s_churn s_max s_min s_noise sample_max_value
    sampling_eps scale_factors scaler schedule_mode scheduler_type set_alpha_to_one
    shift shift_terminal sigma_data sigma_max sigma_min sigma_schedule skip_prk_steps
    snr snr_shift_scale solver_order solver_p solver_type stage_range stages
    steps_offset stochastic_sampling t_lim_ode t_lim_ode_below t_max t_min
    tail_step_multiplier tail_steps tau_func threshold thresholding time_shift_type
    timestep_scaling timestep_spacing timestep_type trained_betas tsr_k tsr_sigma
    upscale_mode use_beta_sigmas use_dynamic_shifting use_exponential_sigmas
    use_flow_sigmas use_karras_sigmas use_lu_lambdas variance_type
    """.split()
)

# Options of earlier versions (0.0 to 0.9, and the Flax schedulers), without effect on any sample.
EARLIER_OPTIONS = frozenset("dtype tensor_format timestep_values".split())

# How to sample: arguments of diffusers' `step`, `set_timesteps` and pipelines, so that they are in
# no file of the classes that take them there. Here they are options of the scheduler; the scale of
# the first noise is one that diffusers does not have.
CALL_OPTIONS = frozenset(
    """
    eta jump_length jump_n_sample noise_scale order s_churn s_noise s_tmax s_tmin
    use_clipped_model_output
    """.split()
)

# What DPM-Solvers make of the names of DEIS and UniPC, as in diffusers.
DPM_NAMES = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
}
