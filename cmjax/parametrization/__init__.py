"""What a network means: noise path, time and scalings, and conversions between them."""

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings, denoise
from cmjax.parametrization.conversion import (
    Denoiser,
    adapt,
    consistency_function,
    edm_denoiser,
    trigflow_network,
)
from cmjax.parametrization.discrete import Discrete, DiscreteExploding
from cmjax.parametrization.edm import EDM
from cmjax.parametrization.flow import FlowMatching
from cmjax.parametrization.karras_ve import KarrasVe
from cmjax.parametrization.sde import VESDE, VPSDE
from cmjax.parametrization.trigflow import TrigFlow, VDiffusion

__all__ = [
    "EDM",
    "VESDE",
    "VPSDE",
    "Denoiser",
    "Discrete",
    "DiscreteExploding",
    "FlowMatching",
    "KarrasVe",
    "NoiseLevel",
    "Parametrization",
    "Scalings",
    "TrigFlow",
    "VDiffusion",
    "adapt",
    "consistency_function",
    "denoise",
    "edm_denoiser",
    "trigflow_network",
]
