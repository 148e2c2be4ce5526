"""The public names for type checkers and editors; `__init__.py` imports them when used."""

from cmjax import arrays as arrays
from cmjax import autoencoder as autoencoder
from cmjax import categorical as categorical
from cmjax import checkpoints as checkpoints
from cmjax import cli as cli
from cmjax import conditioning as conditioning
from cmjax import configs as configs
from cmjax import constraints as constraints
from cmjax import editing as editing
from cmjax import evaluation as evaluation
from cmjax import files as files
from cmjax import former_names as former_names
from cmjax import generation as generation
from cmjax import guidance as guidance
from cmjax import image_files as image_files
from cmjax import images as images
from cmjax import interrupts as interrupts
from cmjax import labels as labels
from cmjax import level_search as level_search
from cmjax import meshes as meshes
from cmjax import model as model
from cmjax import model_sampling as model_sampling
from cmjax import models as models
from cmjax import networks as networks
from cmjax import parametrization as parametrization
from cmjax import printing as printing
from cmjax import processes as processes
from cmjax import progress as progress
from cmjax import random as random
from cmjax import registry as registry
from cmjax import sampling as sampling
from cmjax import sampling_inputs as sampling_inputs
from cmjax import schedulers as schedulers
from cmjax import serialization as serialization
from cmjax import spelling as spelling
from cmjax import system as system
from cmjax import testing as testing
from cmjax import tracing as tracing
from cmjax import training as training
from cmjax import version as version
from cmjax.autoencoder import Autoencoder as Autoencoder
from cmjax.checkpoints import load as load
from cmjax.checkpoints import load_autoencoder as load_autoencoder
from cmjax.checkpoints import save as save
from cmjax.checkpoints import save_autoencoder as save_autoencoder
from cmjax.model import Model as Model
from cmjax.models import from_linen as from_linen
from cmjax.models import from_nnx as from_nnx
from cmjax.registry import register as register
from cmjax.sampling import sample as sample
from cmjax.schedulers import (
    CMStochasticIterativeScheduler as CMStochasticIterativeScheduler,
)
from cmjax.schedulers import CTMScheduler as CTMScheduler
from cmjax.schedulers import DDIMInverseScheduler as DDIMInverseScheduler
from cmjax.schedulers import DDIMScheduler as DDIMScheduler
from cmjax.schedulers import DDPMScheduler as DDPMScheduler
from cmjax.schedulers import DEISMultistepScheduler as DEISMultistepScheduler
from cmjax.schedulers import DiscreteScheduler as DiscreteScheduler
from cmjax.schedulers import DiscreteSigmasScheduler as DiscreteSigmasScheduler
from cmjax.schedulers import (
    DPMSolverMultistepInverseScheduler as DPMSolverMultistepInverseScheduler,
)
from cmjax.schedulers import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
from cmjax.schedulers import DPMSolverSDEScheduler as DPMSolverSDEScheduler
from cmjax.schedulers import DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler
from cmjax.schedulers import EDMDPM2Scheduler as EDMDPM2Scheduler
from cmjax.schedulers import (
    EDMDPMSolverMultistepScheduler as EDMDPMSolverMultistepScheduler,
)
from cmjax.schedulers import EDMEulerAncestralScheduler as EDMEulerAncestralScheduler
from cmjax.schedulers import EDMEulerScheduler as EDMEulerScheduler
from cmjax.schedulers import EDMHeunScheduler as EDMHeunScheduler
from cmjax.schedulers import EDMScheduler as EDMScheduler
from cmjax.schedulers import (
    EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler,
)
from cmjax.schedulers import EulerDiscreteScheduler as EulerDiscreteScheduler
from cmjax.schedulers import ExplodingScheduler as ExplodingScheduler
from cmjax.schedulers import FlowMapEulerDiscreteScheduler as FlowMapEulerDiscreteScheduler
from cmjax.schedulers import (
    FlowMatchEulerDiscreteScheduler as FlowMatchEulerDiscreteScheduler,
)
from cmjax.schedulers import (
    FlowMatchHeunDiscreteScheduler as FlowMatchHeunDiscreteScheduler,
)
from cmjax.schedulers import FlowMatchLCMScheduler as FlowMatchLCMScheduler
from cmjax.schedulers import FlowMatchScheduler as FlowMatchScheduler
from cmjax.schedulers import FlowScheduler as FlowScheduler
from cmjax.schedulers import HeunDiscreteScheduler as HeunDiscreteScheduler
from cmjax.schedulers import IPNDMScheduler as IPNDMScheduler
from cmjax.schedulers import KarrasVeScheduler as KarrasVeScheduler
from cmjax.schedulers import (
    KDPM2AncestralDiscreteScheduler as KDPM2AncestralDiscreteScheduler,
)
from cmjax.schedulers import KDPM2DiscreteScheduler as KDPM2DiscreteScheduler
from cmjax.schedulers import LCMScheduler as LCMScheduler
from cmjax.schedulers import LMSDiscreteScheduler as LMSDiscreteScheduler
from cmjax.schedulers import LogSNRScheduler as LogSNRScheduler
from cmjax.schedulers import PNDMScheduler as PNDMScheduler
from cmjax.schedulers import RePaintScheduler as RePaintScheduler
from cmjax.schedulers import Scheduler as Scheduler
from cmjax.schedulers import SchedulerState as SchedulerState
from cmjax.schedulers import SCMScheduler as SCMScheduler
from cmjax.schedulers import ScoreSdeVeScheduler as ScoreSdeVeScheduler
from cmjax.schedulers import ScoreSdeVpScheduler as ScoreSdeVpScheduler
from cmjax.schedulers import SpacedScheduler as SpacedScheduler
from cmjax.schedulers import StepOutput as StepOutput
from cmjax.schedulers import TableScheduler as TableScheduler
from cmjax.schedulers import TCDScheduler as TCDScheduler
from cmjax.schedulers import UniPCMultistepScheduler as UniPCMultistepScheduler
from cmjax.schedulers import VQDiffusionScheduler as VQDiffusionScheduler
from cmjax.schedulers import scheduler_from_config as scheduler_from_config
from cmjax.version import __version__ as __version__
