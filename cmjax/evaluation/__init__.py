"""Measures of sample quality: Fréchet distance, precision and recall of features.

    real = features(feature_fn, test_images)
    generated = features(feature_fn, samples)
    frechet_distance(real, generated)
    precision_recall(real, generated)

The features come from a function of your own, such as the last hidden layer of a classifier. Only
compare numbers from the same features and sample count. For the standard FID, write the samples
with `cmjax.images.save_npz` or `save_png_folder` and run the guided-diffusion evaluator or
torch-fidelity on them.

Everything is computed by NumPy in float64, on the host. `search_sigmas` looks for the noise levels
whose samples are best by such a measure.
"""

from cmjax.evaluation.extraction import features
from cmjax.evaluation.gaussians import (
    Gaussian,
    as_gaussian,
    fit_gaussian,
    frechet_distance,
)
from cmjax.evaluation.neighbours import PrecisionRecall, precision_recall
from cmjax.level_search import search_sigmas

__all__ = [
    "Gaussian",
    "PrecisionRecall",
    "as_gaussian",
    "features",
    "fit_gaussian",
    "frechet_distance",
    "precision_recall",
    "search_sigmas",
]
