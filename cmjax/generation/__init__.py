"""Generation of many samples: in memory, or into a folder from which an interrupted run resumes.

Sample i depends on the request and on i, not on batches, devices, processes or interruptions.
"""

from cmjax.generation.batches import BatchSampler, regroup
from cmjax.generation.filling import Outcome
from cmjax.generation.folder import generate_folder, generate_until_stopped
from cmjax.generation.memory import Generated, generate
from cmjax.generation.request import Request
from cmjax.generation.settings import model_digest
from cmjax.generation.verification import Verified, verify

__all__ = [
    "BatchSampler",
    "Generated",
    "Outcome",
    "Request",
    "Verified",
    "generate",
    "generate_folder",
    "generate_until_stopped",
    "model_digest",
    "regroup",
    "verify",
]
