"""`cmjax evaluate`."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmjax.cli import option_types, options, terminal
from cmjax.printing import printable

if TYPE_CHECKING:
    import numpy as np

    from cmjax.cli.evaluate_inputs import Compared

PIXELS = "pixels"  # the name of features that need no function
MOST_PIXELS = 4096  # numbers of a picture; the time of the distance grows with their cube
LARGE = 20_000  # samples of a side from which on precision and recall take minutes


@click.command()
@click.argument("real", metavar="REAL", type=option_types.Location())
@click.argument("generated", metavar="GENERATED", type=option_types.Location())
@click.option(
    "--features",
    metavar="NAME",
    help="What makes features of pictures: package.module:function, which gets u8[B,H,W,C] and "
    "returns [B,D], or pixels.",
)
@click.option(
    "--torch-fidelity",
    is_flag=True,
    help="Let the package torch-fidelity measure, if it is installed, by the features of "
    "Inception: the FID. It downloads the weights.",
)
@click.option(
    "--num",
    "-n",
    type=click.IntRange(2),
    metavar="N",
    help="Number of samples to draw of each, the same in every call.  [default: all]",
)
@options.size()
@click.option(
    "--neighbor",
    "k",
    type=click.IntRange(1),
    metavar="K",
    default=3,
    show_default=True,
    help="Which neighbour the manifolds of precision and recall reach to.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 2**20),
    metavar="N",
    default=64,
    show_default=True,
    help="Number of pictures that the function of --features gets at a time.",
)
@options.as_json
def evaluate(
    real: Path,
    generated: Path,
    features: str | None,
    torch_fidelity: bool,
    num: int | None,
    size: int | None,
    k: int,
    batch_size: int,
    as_json: bool,
) -> None:
    """Measures how far GENERATED samples are from REAL ones.

    Prints the Fréchet distance, precision (the share of GENERATED samples that are like REAL ones)
    and recall (the share of REAL ones that GENERATED samples are like).

    Each set is an .npz or IDX file of pictures, a folder of pictures or of cmjax generate; or
    features that you have, [N, D] in a .npy or as "features" in an .npz; or an .npz of statistics,
    "mu" and "sigma". The distance is 0 for equal distributions, and too large for few samples.

    \b
    Examples:
      cmjax evaluate mnist.npz samples.npz --features pixels
      cmjax evaluate photos many --size 64 --features mypkg.clip:embed
      cmjax evaluate statistics.npz features.npy
      cmjax evaluate photos many --torch-fidelity
    """
    from cmjax.cli.evaluate_inputs import read

    if features is not None and torch_fidelity:
        raise ValueError(
            "--features and --torch-fidelity exclude each other; give one of them"
        )
    sides = [read(path, size, num) for path in (real, generated)]
    if all(side.pictures is None for side in sides):
        _check_no_pictures(features, size)
    _note_fewer_than(num, sides)
    described = {"real": _described(sides[0]), "generated": _described(sides[1])}
    if torch_fidelity:
        described |= _by_torch_fidelity(sides, k, batch_size)
    else:
        described |= _by_features(sides, features, k, batch_size)
    if as_json:
        terminal.echo(json.dumps(described, indent=2))
        return

    # Two columns, the first as wide as its longest name.
    width = max(map(len, described))
    for name, value in described.items():
        words = f"{value:.6g}" if isinstance(value, float) else value
        terminal.echo(printable(f"{name.replace('_', ' '):{width}}  {words}"))


def _note_fewer_than(num: int | None, sides: "list[Compared]") -> None:
    """Notes which sides have fewer samples than --num asks for, and so are taken whole."""
    for side in sides:
        samples = side.features if side.pictures is None else side.pictures
        if num is not None and samples is not None and len(samples) < num:
            terminal.note(f"Note: {side.path} has {len(samples):,} samples, not {num:,}")


def _check_no_pictures(features: str | None, size: int | None) -> None:
    """Raises ValueError for options of pictures, which would have no effect without any."""
    for option, value in {"--features": features, "--size": size}.items():
        if value is not None:
            raise ValueError(
                f"{option} {value} is for pictures, and both sides are features or statistics; "
                "leave it out"
            )


def _described(side: "Compared") -> str:
    """Returns where a side is from and what it is."""
    return f"{side.path}, {side}"


def _by_features(
    sides: "list[Compared]", features: str | None, k: int, batch_size: int
) -> dict[str, Any]:
    """Returns the measures by features; without samples of both sides, only the distance."""
    from cmjax.evaluation import frechet_distance, precision_recall

    # Features f64[N, D] of each side, or statistics of them.
    real, generated = [features_of(side, features, batch_size) for side in sides]
    check_num_features(sides[0].path, real, sides[1].path, generated)
    num_features = _num_features(real)

    # How many samples there are of each side that is no statistics.
    counts = [len(side) for side in (real, generated) if not _is_gaussian(side)]
    has_all_samples = len(counts) == 2
    if has_all_samples and k >= min(counts):
        raise ValueError(
            f"--neighbor must be below the number of samples, {min(counts)}, got {k}"
        )
    if counts and min(counts) < num_features:
        terminal.note(
            f"Note: {min(counts):,} samples are few for {num_features:,} features: the distance is "
            "too large, and comparable only with others of as many samples"
        )

    measured: dict[str, Any] = {
        "features": f"{num_features:,}, {features or 'given'}",
        "frechet_distance": frechet_distance(real, generated),
    }
    if has_all_samples:
        if max(counts) > LARGE:
            terminal.echo(
                f"Precision and recall: each of {max(counts):,} samples is compared with all "
                "others, which takes minutes; --num takes fewer",
                err=True,
            )
        fidelity = precision_recall(real, generated, k)
        measured["precision"] = fidelity.precision
        measured["recall"] = fidelity.recall
    terminal.print_notes()
    return measured


def check_num_features(real_path: Any, real: Any, path: Any, generated: Any) -> None:
    """Raises ValueError unless two sides, called by their paths, have as many features."""
    ours = _num_features(real)
    theirs = _num_features(generated)
    if ours != theirs:
        raise ValueError(
            f"{real_path} and {path} must have as many features, got {ours} and {theirs}; features "
            "of pixels need pictures of one size (--size N), others the same function"
        )


def _num_features(side: Any) -> int:
    """Returns the number of features, of samples `[N, D]` or of their statistics."""
    return len(side.mean) if _is_gaussian(side) else side.shape[1]


def _is_gaussian(side: Any) -> bool:
    """Returns whether a side is statistics of features, not features."""
    from cmjax.evaluation import Gaussian

    return isinstance(side, Gaussian)


def features_of(side: "Compared", name: str | None, batch_size: int) -> Any:
    """Returns the features of one side, f64[N, D], or their statistics."""
    from cmjax import evaluation
    from cmjax.configs import import_by_name

    if side.statistics is not None:
        return side.statistics
    if side.features is not None:
        return side.features
    assert side.pictures is not None
    if name is None:
        raise ValueError(
            f"{side.path} holds pictures: give --features package.module:function, "
            "--features pixels or --torch-fidelity"
        )
    if name == PIXELS:
        count = side.pictures[0].size
        if count > MOST_PIXELS:
            raise ValueError(
                f"--features pixels: {side.path} has {count:,} numbers in a picture, more than "
                f"{MOST_PIXELS:,}; --size N makes them fewer"
            )
        return evaluation.features(_pixels, side.pictures, batch_size)
    if ":" not in name:
        raise ValueError(
            f"--features must be {PIXELS} or package.module:function, got {name!r}"
        )
    function = import_by_name(name, "--features")
    try:
        return evaluation.features(function, side.pictures, batch_size)
    except Exception as error:
        # The user's function may raise anything.
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"--features {name}: {reason}") from error


def _pixels(pictures: "np.ndarray") -> "np.ndarray":
    """Returns the pixels in [-1, 1], f32[B, H W C]."""
    from cmjax.images import from_uint8

    return from_uint8(pictures).reshape(len(pictures), -1)


def _by_torch_fidelity(sides: "list[Compared]", k: int, batch_size: int) -> dict[str, Any]:
    """Returns what torch-fidelity measures; it reads folders of pictures, written for it here."""
    from cmjax.image_files import ImageSet, write_png_folder

    for side in sides:
        if side.pictures is None:
            raise ValueError(f"--torch-fidelity needs pictures, but {side.path} is {side}")
    try:
        import torch
        import torch_fidelity as library  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "--torch-fidelity needs the package of that name; pip install torch-fidelity"
        ) from None

    # Its own words: the first input is the generated one, and the second the reference.
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / name for name in ("real", "generated")]
        for folder, side in zip(folders, sides, strict=True):
            write_png_folder(folder, ImageSet.of(side.pictures))  # type: ignore[arg-type]
        measured = library.calculate_metrics(
            input1=str(folders[1]),
            input2=str(folders[0]),
            fid=True,
            prc=True,
            prc_neighborhood=k,
            batch_size=batch_size,
            cuda=torch.cuda.is_available(),
            cache=False,
            verbose=False,
        )
    return {"features": "torch-fidelity"} | {
        name: float(value) for name, value in measured.items()
    }
