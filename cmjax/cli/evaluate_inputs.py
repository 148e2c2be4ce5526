"""What `cmjax evaluate` compares: pictures, features or statistics, from files of any kind."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmjax.files import MANIFEST

if TYPE_CHECKING:
    import numpy as np

    from cmjax.evaluation import Gaussian

STATISTICS = ("mu", "sigma")  # arrays of an .npz that other tools write


class Compared(NamedTuple):
    """One side of a comparison; one of the last three is there.

    Attributes:
        path: where it is from.
        pictures: u8[N, H, W, C], or None.
        features: f[N, D], or None.
        statistics: a Gaussian fitted to features, or None.
    """

    path: Path
    pictures: "np.ndarray | None" = None
    features: "np.ndarray | None" = None
    statistics: "Gaussian | None" = None

    def __str__(self) -> str:
        """What it is, such as "1,000 pictures of 28x28x1"."""
        if self.pictures is not None:
            shape = "x".join(map(str, self.pictures.shape[1:]))
            return f"{len(self.pictures):,} pictures of {shape}"
        if self.features is not None:
            return (
                f"{len(self.features):,} samples with {self.features.shape[1]:,} features"
            )
        assert self.statistics is not None
        return f"statistics of {len(self.statistics.mean):,} features"


def read(path: Path, size: int | None, num: int | None) -> Compared:
    """Reads one side of a comparison.

    Args:
        path: an `.npz` or IDX file of pictures, a folder of pictures or of `cmjax generate`; a
            `.npy` or `.npz` of features; an `.npz` of statistics.
        size: height and width that the middle squares of pictures are scaled to; None for none.
        num: how many samples to draw, with a fixed seed; None for all.

    Raises:
        ValueError: if it is none of these.
        OSError: if it cannot be read.
    """
    from cmjax.evaluation import as_gaussian

    exported = _export_of(path) if path.is_dir() else path
    if exported is None:
        return resized(Compared(path, pictures=_read_folder(path, size, num)), size)
    found = _read_file(exported)
    if found.statistics is not None:
        if num is not None:
            raise ValueError(f"--num: {path} holds statistics, not samples; leave it out")
        return found._replace(statistics=as_gaussian(found.statistics, str(path)))

    # Only now: what is computed from all of them could not be reduced.
    pictures = found.pictures
    features = found.features
    if features is not None:
        # A single number has no samples to take some of, and is refused below.
        features = _some(features, num) if features.ndim else features
        as_gaussian(features, str(path))
    if pictures is not None:
        pictures = _some(pictures, num)
    return resized(Compared(path, pictures, features), size)


def _some(samples: Any, num: int | None) -> Any:
    """Returns `num` samples of an array or a list, in their order; all, if there are no more."""
    import numpy as np

    # The first ones of a folder would be of its first classes. Drawn with a fixed seed, they are
    # the same in every call.
    if num is None or num >= len(samples):
        return samples
    drawn = np.sort(np.random.default_rng(0).permutation(len(samples))[:num])
    return [samples[i] for i in drawn] if isinstance(samples, list) else samples[drawn]


def _export_of(folder: Path) -> Path | None:
    """Returns the `.npz` in a folder of `cmjax generate`; None for a folder of pictures."""
    if not (folder / MANIFEST).exists():
        return None

    from cmjax.training.moments import holds_moments

    if holds_moments(folder) and not any(folder.glob("samples_*.npz")):
        raise ValueError(
            f"{folder} holds the latents of cmjax encode; give the pictures that they are of"
        )
    exports = sorted(folder.glob("samples_*"))
    found = [path for path in exports if path.suffix == ".npz"]
    folders = [path for path in exports if path.is_dir()]

    # A run that was continued has exports of several numbers of samples.
    sizes = {path.stem.removesuffix("_png") for path in (*found, *folders)}
    if len(found) == len(sizes) == 1:
        return found[0]
    if len(sizes) > 1:
        names = " and ".join(path.name for path in (*found, *folders))
        way_out = f"has exports of several sizes, {names}; name one"
    elif folders:
        way_out = f"has no samples_*.npz; name the folder {folders[0]}"
    else:
        way_out = "has no samples_*.npz; run its command again"
    raise ValueError(f"{folder} is a run of cmjax generate, which {way_out}")


def _read_folder(folder: Path, size: int | None, num: int | None) -> "np.ndarray":
    """Returns the pictures of a folder and of the folders in it, u8[N, H, W, C]."""
    import numpy as np

    from cmjax.images import center_crop_resize, read_image
    from cmjax.training.picture_folders import PICTURES, find_pictures

    paths = _some(find_pictures(folder, below=True), num)
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURES)})")

    # Gray pictures among coloured ones have three equal channels. Threads help, as Pillow releases
    # the GIL.
    def read_one(path: str) -> "np.ndarray":
        pixels = read_image(path, 3)
        return pixels if size is None else center_crop_resize(pixels, size)

    with ThreadPoolExecutor() as readers:
        pictures = list(readers.map(read_one, paths))
    for path, pixels in zip(paths, pictures, strict=True):
        if pixels.shape != pictures[0].shape:
            height, width = pixels.shape[:2]
            raise ValueError(
                f"{path} is {width}x{height}, other than {paths[0]}; --size N scales all"
            )
    stacked = np.stack(pictures)
    is_gray = (stacked == stacked[..., :1]).all()
    return stacked[..., :1] if is_gray else stacked


def _read_file(path: Path) -> Compared:
    """Returns what a file holds: pictures, features or statistics."""
    import numpy as np

    from cmjax.evaluation import Gaussian
    from cmjax.training.array_files import read_arrays

    kind = path.suffix.lower()
    if kind == ".npy":
        return Compared(path, features=_load(path, _single))
    if kind == ".npz":
        arrays = _load(path, lambda found: {name: found[name] for name in _wanted(found)})
        if all(name in arrays for name in STATISTICS):
            return Compared(path, statistics=Gaussian(*(arrays[n] for n in STATISTICS)))
        if "features" in arrays:
            return Compared(path, features=arrays["features"])
    data = read_arrays(path).data

    # Gray pictures may be [N, H, W]; [N, D] are features under the name of pictures.
    if data.dtype == np.uint8 and data.ndim in (3, 4) and data.size:
        return Compared(path, pictures=data.reshape(*data.shape[:3], -1))
    if data.ndim == 2:
        return Compared(path, features=data)
    raise ValueError(
        f"{path} must hold pictures u8[N, H, W(, C)] or features [N, D], "
        f"got {data.dtype}{list(data.shape)}"
    )


def _single(found: Any) -> "np.ndarray":
    """Returns the array of a `.npy`; raises ValueError for the arrays of an `.npz`."""
    import numpy as np

    if not isinstance(found, np.ndarray):
        raise ValueError("it holds several arrays, as an .npz does")
    return found


def _wanted(found: Any) -> list[str]:
    """Returns which arrays of an `.npz` are statistics or features."""
    return [name for name in (*STATISTICS, "features") if name in found]


def _load(path: Path, take: Callable[[Any], Any]) -> Any:
    """Returns what `take` makes of the arrays of a file of NumPy."""
    import numpy as np

    from cmjax.files import open_regular
    from cmjax.training.array_files import check_numpy_file

    # `np.load` refuses pickled objects by default, which could run code.
    with open_regular(path) as file:
        try:
            check_numpy_file(file)
            return take(np.load(file))
        except Exception as error:
            # A damaged file makes NumPy raise errors of any kind.
            raise ValueError(
                f"{path} is not a file of NumPy that can be read: {error}"
            ) from None


def resized(compared: Compared, size: int | None) -> Compared:
    """Returns pictures with their middle squares scaled to `size`, if it is given."""
    import numpy as np

    from cmjax.images import center_crop_resize

    pictures = compared.pictures
    if size is None or pictures is None or pictures.shape[1:3] == (size, size):
        return compared
    pictures = np.stack([center_crop_resize(picture, size) for picture in pictures])
    return compared._replace(pictures=pictures)
