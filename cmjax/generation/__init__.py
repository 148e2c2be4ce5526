"""Many samples: sample i depends on the seed and i, not on batches, devices, processes or interruptions."""

from cmjax.generation.folder import Outcome, generate_folder
from cmjax.generation.manifest import model_digest
from cmjax.generation.sampler import Generated, Sampler, generate, regroup
from cmjax.generation.verification import Verified, verify

__all__ = [
    "Generated",
    "Outcome",
    "Sampler",
    "Verified",
    "generate",
    "generate_folder",
    "model_digest",
    "regroup",
    "verify",
]
