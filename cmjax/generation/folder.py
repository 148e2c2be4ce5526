"""Resumable generation of many samples into a folder, on all devices of all processes."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from cmjax.generation.batches import BatchSampler
from cmjax.generation.exports import check_formats, check_places, export
from cmjax.generation.filling import Outcome, Work, fill_folder
from cmjax.generation.folder_settings import MAX_NUM
from cmjax.generation.manifest import check_folder
from cmjax.generation.request import Request, as_integer
from cmjax.generation.settings import RunSettings
from cmjax.generation.shards import Shards
from cmjax.interrupts import delivering
from cmjax.model import Model
from cmjax.processes import run_on_all_processes


def generate_until_stopped(
    folder: str | Path,
    model: Model,
    request: Request,
    num: int,
    *,
    batch_size: int = 64,
    shard_size: int | None = None,
    shard_params: bool = False,
    formats: Sequence[str] = ("npz",),
    source: str = "",
    progress: bool = False,
    report: Callable[[str], None] = warnings.warn,
) -> Outcome:
    """Generates samples into a folder, on all devices of all processes.

    Called again after an interruption of any kind, it resumes: samples in the folder are checked,
    and only those missing or damaged are made. Files that it did not write are neither removed nor
    replaced.

    After Ctrl-C or SIGTERM the batches in progress are finished and written. `generate_folder` then
    delivers the signal to the program, as KeyboardInterrupt for Ctrl-C; `generate_until_stopped`,
    for programs that decide themselves, returns.

    Args:
        folder: a new folder, or that of the same run; the same for all processes.
        model: from `cmjax.load`.
        request: which samples to make.
        num: number of samples. A larger number than before adds samples to the folder.
        batch_size: number of samples that each device makes at a time.
        shard_size: number of samples in a file; None for that of the folder, or 100 in a new one.
            A killed process loses at most three files' worth of samples, and the batches that it
            was computing.
        shard_params: whether to divide the parameters among the devices of each process; see
            `BatchSampler`.
        formats: what to export the samples to once all are made; keys of `exports.FORMATS`.
        source: what the model was loaded from, which the manifest notes without absolute paths;
            `cmjax generate --verify` loads it again if it is a file or folder that is still there.
        progress: whether to show a progress bar on stderr.
        report: called with what the user has to know, which is the names of files that are damaged
            or of another run and were moved to a folder `.removed`; by default a warning.

    Returns:
        What was made, and where it is.

    Raises:
        ValueError: for arguments out of range, if the folder is of a run with other settings, or
            if samples are not finite.
        OSError: if something cannot be written. Samples written before remain.
    """
    folder = Path(folder)

    def prepare():
        as_integer("num", num, 1, MAX_NUM)
        as_integer("batch_size", batch_size, 1, MAX_NUM)
        if shard_size is not None:
            as_integer("shard_size", shard_size, 1, MAX_NUM)
        request.check_model(model)
        check_formats(formats, model.picture_shape)
        if jax.process_index() == 0:
            check_folder(folder)
        return RunSettings.of(model, request)

    # All arguments are checked before the folder is touched.
    settings = run_on_all_processes(prepare)

    # Before anything is written, and days before the export.
    def check(shards: Shards) -> None:
        check_places(shards.folder, num, settings.shape, formats)

    def make() -> BatchSampler:
        return BatchSampler(
            model, request, batch_size=batch_size, shard_params=shard_params
        )

    def finish(shards: Shards, stopping: Callable[[], bool]) -> list[Path]:
        return [export(shards, num, name, stopping, report) for name in formats]

    work = Work("sampling", "sample", check, make, finish)
    return fill_folder(
        folder,
        settings,
        num,
        work,
        source=source,
        shard_size=shard_size,
        progress=progress,
        report=report,
    )


generate_folder = delivering(generate_until_stopped)
