"""Makes editing.npz: what Algorithm 4 of Song et al. 2023 gives.

The reference is written here from the description of the algorithm, step by step as OpenAI's three
functions take it, in float64 and channels first. It does otherwise what cmjax does: levels by index
`ts` into the grid, a full orthogonal matrix from a QR decomposition, a mask in its coordinates,
given noise. The denoiser is a formula. To make the file again:

    python tests/golden/make_editing_goldens.py
"""

import json
from pathlib import Path

import numpy as np

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0
SIGMA_DATA = 0.5
PAPER_LUMA = (0.2989, 0.5870, 0.1140)
GRIDS = {
    "all of 18": (18, list(range(18))),
    "three of 40": (40, [0, 9, 22, 39]),
    "two of 201": (201, [0, 106, 200]),
}


def level(index, total):
    """The noise level at an index into the grid of `total`, 0 being the highest.

    Karras et al. 2022, equation 5.
    """
    high = SIGMA_MAX ** (1 / RHO)
    low = SIGMA_MIN ** (1 / RHO)
    return (high + index / (total - 1) * (low - high)) ** RHO


def network(x, t):
    """A formula that mixes neighbours, channels and the time.

    `tests/test_editing.py` has it in JAX.
    """
    return (
        2 * np.tanh(x)
        + np.sin(np.roll(x, 1, -1) + np.roll(x, 1, -2))
        + 0.5 * np.roll(x, 1, 1)
        + 5e-4 * t
    )


def denoiser(x, sigma):
    """The consistency function of `network`, clipped."""
    gap = sigma - SIGMA_MIN
    scale = np.sqrt(sigma**2 + SIGMA_DATA**2)
    output = network(x / scale, 250 * np.log(sigma))
    x0 = SIGMA_DATA**2 / (gap**2 + SIGMA_DATA**2) * x + gap * SIGMA_DATA / scale * output
    return np.clip(x0, -1, 1)


def orthogonal(column):
    """An orthogonal matrix whose first column points along `column`."""
    q = np.linalg.qr(np.column_stack([column, np.eye(len(column))[:, 1:]]))[0]
    return q * np.sign(q[:, 0] @ column)


class Identity:
    """Pixels as they are: inpainting."""

    forward = inverse = staticmethod(lambda x: x)


class Channels:
    """Channels in the coordinates of an orthogonal matrix: colourisation."""

    def __init__(self, weights):
        self.q = orthogonal(np.array(weights))

    def forward(self, x):
        return np.moveaxis(np.moveaxis(x, 1, -1) @ self.q, -1, 1)

    def inverse(self, x):
        return np.moveaxis(np.moveaxis(x, 1, -1) @ self.q.T, -1, 1)


class Patches:
    """Pixels of each patch in the coordinates of an orthogonal matrix: super-resolution.

    Coordinates are `[B, C, h, w, patch^2]`.
    """

    def __init__(self, patch):
        self.patch = patch
        self.q = orthogonal(np.ones(patch**2))

    def forward(self, x):
        pixels = []
        for m in range(self.patch**2):
            pixels.append(
                x[:, :, m // self.patch :: self.patch, m % self.patch :: self.patch]
            )
        return np.stack(pixels, -1) @ self.q

    def inverse(self, y):
        pixels = y @ self.q.T
        x = np.empty((*y.shape[:2], y.shape[2] * self.patch, y.shape[3] * self.patch))
        for m in range(self.patch**2):
            x[:, :, m // self.patch :: self.patch, m % self.patch :: self.patch] = pixels[
                ..., m
            ]
        return x


def algorithm_4(transform, image, known, noise, total, ts):
    """Edits `image` [B, C, H, W] where `known`, in the transform's coordinates, is 0.

    `noise` is [len(ts), B, C, H, W].
    """

    def replace(x):
        mixed = transform.forward(image) * known + transform.forward(x) * (1 - known)
        return transform.inverse(mixed)

    x = replace(np.zeros_like(image)) + level(ts[0], total) * noise[0]
    for n, (index, following) in enumerate(zip(ts, ts[1:], strict=False)):
        x0 = replace(denoiser(x, level(index, total)))
        sigma = np.clip(level(following, total), SIGMA_MIN, SIGMA_MAX)
        x = x0 + np.sqrt(sigma**2 - SIGMA_MIN**2) * noise[n + 1]
    return x


def main():
    """Writes the file beside this script; its arrays are channels last."""
    rng = np.random.default_rng(4)
    cases = []
    arrays = {}
    for task in ("inpaint", "colorize", "super_resolve"):
        for grid, (total, ts) in GRIDS.items():
            # Rounded to float32, so that what is stored is what the results are computed from.
            image = np.float64(np.float32(rng.uniform(-1, 1, (2, 3, 8, 6))))
            noise = np.float64(np.float32(rng.standard_normal((len(ts), *image.shape))))
            first_only = (np.arange(4) == 0).astype(float)
            transform, known = {
                "inpaint": (
                    Identity(),
                    (rng.uniform(size=image.shape) < 0.4).astype(float),
                ),
                "colorize": (Channels(PAPER_LUMA), first_only[:3].reshape(3, 1, 1)),
                "super_resolve": (Patches(2), first_only),
            }[task]
            result = algorithm_4(transform, image, known, noise, total, ts)
            given = {
                "inpaint": {"image": image, "known": known},
                "colorize": {"gray": np.tensordot(PAPER_LUMA, image, (0, 1))[:, None]},
                "super_resolve": {"low": image.reshape(2, 3, 4, 2, 3, 2).mean((3, 5))},
            }[task]
            name = f"{task}, {grid}"
            case = {"name": name, "task": task, "num_train_timesteps": total, "ts": ts}
            cases.append({**case, "given": list(given)})
            for key, value in {**given, "noise": noise, "result": result}.items():
                arrays[f"{name}.{key}"] = np.moveaxis(value, -3, -1).astype(np.float32)
    np.savez_compressed(
        Path(__file__).with_name("editing.npz"), index=json.dumps(cases), **arrays
    )


if __name__ == "__main__":
    main()
