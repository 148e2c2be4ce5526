"""The folder of a training run: whose it is, and that nothing in it is lost."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.checkpoints.saving import check_destination
from cmjax.configs import shown
from cmjax.files import clear_unfinished, read_regular, replacing
from cmjax.training.config import TrainConfig

CONFIG = "config.json"
METRICS = "metrics.csv"  # its first column is the step
FINGERPRINT = "fingerprint"  # its key for data and models; the others are of the sections
_LARGEST = 2**24  # bytes of a configuration

# Values of keys that files of earlier versions do not have, as JSON.
_DEFAULTS = {
    "data": {"autoencoder": ""},
    "run": {"label_dropout": 0.0},
    "teacher": {"null_class": False, "guidance_interval": []},
}

# Keys that may change when a run is resumed. These have no effect on what is trained:
FREE_TO_CHANGE = {
    ("run", "log_every"),
    ("run", "sample_every"),
    ("run", "save_every"),
    ("run", "keep"),
    ("run", "tensorboard"),
    ("data", "autoencoder"),
}
# and these are names of files, whose content the fingerprint tells from others.
FREE_TO_CHANGE |= {
    ("data", "source"),
    ("teacher", "model"),
    ("teacher", "weak_model"),
    ("run", "init"),
}


def open_folder(
    out: Path, config: TrainConfig, fingerprint: Mapping[str, Any], latest: int | None
) -> None:
    """Prepares a folder for a run, which may be in it already.

    Args:
        out: the folder, which no other run may be using.
        config: of the run.
        fingerprint: of its data and models; see `Run.fingerprint`.
        latest: step of the newest checkpoint in the folder, or None.

    Raises:
        ValueError: if the folder holds another run, or files that the run would replace.
        OSError: if it cannot be written.
    """
    # Temporary files are those of killed processes: this one has the folder to itself.
    clear_unfinished(out)

    # A file of the user's in the folder of a model would end the run at its first save.
    models = model_folders(out, config)
    for folder in models:
        check_destination(folder)

    path = out / CONFIG
    wanted = {**config.to_json(), FINGERPRINT: dict(fingerprint)}
    found = _read(path)
    made = [folder for folder in models if folder.exists()]
    if found is None and latest is not None:
        raise ValueError(
            f"{out} has checkpoints but no {CONFIG}, which says what they are of; "
            "put it back, or choose another folder"
        )
    if found is None and made:
        raise ValueError(
            f"{made[0]} is no model of this run, which would replace it; choose another folder"
        )

    # A start that failed early leaves a configuration, but nothing that could be lost.
    difference = None if found is None else _difference(found, wanted, config)
    if difference is not None and (latest is not None or made):
        raise ValueError(f"{out} holds a run with {difference}, or choose another folder")
    if latest is None and made and _last_step(out) > 2 * config.run.save_every:
        raise ValueError(
            f"{out} holds a run without its checkpoints, whose models would be replaced; put them "
            f"back into {out / 'checkpoints'}, or choose another folder"
        )
    if latest is not None and latest > config.run.steps:
        raise ValueError(
            f"run.steps={config.run.steps} is less than the {latest} steps that {out} has taken; "
            f"give run.steps={latest} or more, or choose another folder"
        )
    if found == wanted:
        return
    with replacing(path) as file:
        file.write(json.dumps(wanted, indent=1).encode())


def model_folders(out: Path, config: TrainConfig) -> list[Path]:
    """Returns the folder of each moving average; that of the first is `model`."""
    others = [out / f"model_{decay}" for decay in config.run.ema_decays[1:]]
    return [out / "model", *others]


def _last_step(out: Path) -> int:
    """Returns the last step that a run has written metrics of; 0 if that is not known."""
    # A run that was killed at its first save has a model, and no checkpoint yet: by the third, the
    # first is on disk.
    try:
        last_row = (out / METRICS).read_text(errors="replace").splitlines()[-1]
        return int(last_row.split(",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def _read(path: Path) -> dict[str, Any] | None:
    """Returns what the file of an earlier run holds, or None if there is none."""
    if not path.exists():
        return None
    try:
        content = json.loads(read_regular(path, _LARGEST))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: {error}; put it back, or choose another folder"
        ) from None

    # The folder of a model has a file of this name too.
    if not isinstance(content, dict) or not {"run", "loss"} <= content.keys():
        raise ValueError(f"{path} is not of a training run; choose another folder")
    return content


def _difference(
    found: Mapping[str, Any], wanted: Mapping[str, Any], config: TrainConfig
) -> str | None:
    """Returns in words the first key that differs, and what to do; None if none does."""
    for section, values in wanted.items():
        found_values = found.get(section)
        if not isinstance(found_values, Mapping):
            return f"no {section}; resume with that"

        # A run from before there was an option had its default.
        found_values = {**_DEFAULTS.get(section, {}), **found_values}
        for key in sorted(values.keys() | found_values.keys()):
            if (section, key) in FREE_TO_CHANGE:
                continue
            if values.get(key) == found_values.get(key):
                continue
            name = f"{section}.{key}"
            way_out = "resume with that"
            if section == FINGERPRINT:
                name = f"other files: {key}"
                way_out = "put the files back as they were"

            # Steps may be added, unless those that were taken would have been others then.
            reason = ""
            if (section, key) == ("run", "steps"):
                depends = _what_depends_on_steps(config)
                if depends is None:
                    continue
                reason = f", and {depends} depends on it"
                way_out = "resume with that, begin anew from its model (run.init)"
            has = shown(found_values.get(key))
            return f"{name}={has}, not {shown(values.get(key))}{reason}; {way_out}"
    return None


def _what_depends_on_steps(config: TrainConfig) -> str | None:
    """Returns what of a run's steps depends on how many there are, or None if nothing does."""
    if config.optimizer.schedule != "constant":
        return f"optimizer.schedule={config.optimizer.schedule!r}"

    # Losses with a curriculum need the length of the run.
    loss: Any = config.make_loss(config.make_scheduler())  # a dataclass
    if any(field.name == "total_steps" for field in dataclasses.fields(loss)):
        return f"the loss {config.loss_name!r}"
    return None
