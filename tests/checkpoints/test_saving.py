"""Saving: what is written can be read again, and nothing of the user's is lost."""

import dataclasses
import os
import stat

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax import cli
from cmjax.checkpoints import loading
from tests.support import checkpoints as tiny
from tests.support.cli import assert_one_line, succeeded

KINDS = ("cmjax", "diffusers")


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mapped(function):
    model = tiny.model()
    return dataclasses.replace(model, params=jax.tree.map(function, model.params))


def other_config():
    model = tiny.model()
    return dataclasses.replace(
        model, config=dataclasses.replace(model.config, layers_per_block=2)
    )


def deleted():
    model = mapped(lambda leaf: leaf + 0)
    for leaf in jax.tree.leaves(model.params):
        leaf.delete()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mapped(lambda p: p * jnp.nan), "values that are not finite"),
        (lambda: mapped(lambda p: p.astype(jnp.int32)), "int32, not floating-point"),
        (lambda: mapped(lambda p: p.astype(bool)), "bool, not floating-point"),
        (lambda: mapped(lambda p: p.astype(jnp.complex64)), "complex64, not floating"),
        (lambda: mapped(lambda p: p.astype(jnp.float8_e4m3fn)), "dtype float8_e4m3fn"),
        (lambda: mapped(lambda p: np.asarray(p, np.float64)), "needs jax_enable_x64"),
        (lambda: mapped(lambda p: p[None]), "misshapen"),
        (lambda: mapped(lambda p: 1.0), "misshapen"),
        (lambda: mapped(lambda p: "text"), "<U4, not floating-point"),
        (
            lambda: mapped(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype)),
            "object, not floating-point",
        ),
        (
            lambda: mapped(lambda p: jax.random.key(0)),
            "cannot be read: JAX array with PRNG",
        ),
        (deleted, "cannot be read: Array has been deleted"),
        (lambda: dataclasses.replace(tiny.model(), params={"a": np.zeros(2)}), "missing"),
        (lambda: dataclasses.replace(tiny.model(), params=None), "missing"),
        (other_config, "missing down_blocks.0.resnets.1"),
        (
            lambda: dataclasses.replace(tiny.model(), scheduler=None),
            "scheduler must be a scheduler",
        ),
        (lambda: 3, "model must be a cmjax.Model"),
    ],
)
def test_what_could_not_be_loaded_leaves_the_model_there(tmp_path, make, message):
    folder = tmp_path / "m"
    cmjax.save(folder, tiny.model())
    before = content(folder)
    with pytest.raises(ValueError, match=message):
        cmjax.save(folder, make())
    with pytest.raises(ValueError):
        cmjax.save(folder, make(), to="diffusers")
    assert content(folder) == before
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("to", KINDS)
def test_numpy_numbers_in_configs_are_saved(tmp_path, to):
    model = tiny.model()
    scheduler = cmjax.CMStochasticIterativeScheduler(
        num_train_timesteps=np.int64(18), sigma_max=np.float32(70)
    )
    config = dataclasses.replace(model.config, sample_size=np.int32(4))
    cmjax.save(
        tmp_path / "m",
        dataclasses.replace(model, scheduler=scheduler, config=config),
        to=to,
    )
    loaded = cmjax.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded.scheduler.num_train_timesteps == 18 and loaded.scheduler.sigma_max == 70


def test_names_of_any_characters_are_saved(tmp_path):
    names = ("caf\udce9", "\x1b[31m\u202e\n")  # the first of a file name that is not UTF-8
    cmjax.save(tmp_path / "m", dataclasses.replace(tiny.model(), class_names=names))
    assert cmjax.load(tmp_path / "m").class_names == names


@pytest.mark.parametrize(("to", "umask"), [("cmjax", 0o002), ("diffusers", 0o027)])
def test_every_file_has_the_permissions_of_a_new_file(tmp_path, to, umask):
    before = os.umask(umask)
    try:
        cmjax.save(tmp_path / "m", tiny.model(), to=to)
    finally:
        os.umask(before)
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "m").rglob("*")
        if path.is_file()
    }
    assert modes == {0o666 & ~umask}


# What is there already.


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("cmjax", "notes.txt"),
        ("cmjax", ".DS_Store"),
        ("cmjax", "Config.json"),
        ("cmjax", "unet/mine.txt"),
        ("diffusers", "unet/mine.txt"),
        ("diffusers", "unet/diffusion_pytorch_model.bin"),
        ("diffusers", "scheduler/deep/mine.txt"),
        ("diffusers", "vae/config.json"),
    ],
)
def test_a_folder_with_anything_else_is_refused(tmp_path, to, name):
    folder = tmp_path / "m"
    cmjax.save(folder, tiny.model(), to=to)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    before = content(folder)
    first = name.split("/")[0]
    for kind in KINDS:
        with pytest.raises(ValueError, match=f"m holds {first}.*cmjax did not write"):
            cmjax.save(folder, tiny.model(1), to=kind)
    assert content(folder) == before


def cmjax_folder(root):
    """A model to convert, beside the folder that is refused."""
    cmjax.save(root / "source", tiny.model())
    return root / "source"


def test_files_of_other_programs_are_refused_by_what_they_hold(tmp_path):
    """Their names are those of a model's files."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text('{"port": 80}')
    cmjax.save(tmp_path / "pipeline", tiny.model(), to="diffusers")
    assert cmjax.checkpoints.diffusers_weights.is_written(tmp_path / "pipeline")
    weights = tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file(load_file(weights), weights, {"format": "pt"})  # as diffusers writes it
    for name in ("app", "pipeline"):
        before = content(tmp_path / name)
        with pytest.raises(
            ValueError, match=f"{name} holds files that cmjax did not write"
        ):
            cmjax.save(tmp_path / name, tiny.model())
        assert content(tmp_path / name) == before


@pytest.mark.parametrize("linked", ["m", "m/unet", "m/unet/config.json"])
def test_no_link_is_followed_or_replaced(tmp_path, linked):
    folder = tmp_path / "m"
    cmjax.save(folder, tiny.model(), to="diffusers")
    victim = tmp_path / "victim"
    (tmp_path / linked).rename(victim)
    (tmp_path / linked).symlink_to(victim)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="symbolic link|which cmjax did not write"):
        cmjax.save(folder, tiny.model(1), to="diffusers")
    assert content(tmp_path) == before and (tmp_path / linked).is_symlink()


def test_both_kinds_replace_each_other(tmp_path):
    folder = tmp_path / "m"
    for seed, to in enumerate(("cmjax", "diffusers", "diffusers", "cmjax")):
        cmjax.save(folder, tiny.model(seed % 2), to=to)
    assert sorted(content(folder)) == [
        "config.json",
        "model.safetensors",
        "scheduler_config.json",
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    succeeded(CliRunner().invoke(cli.main, ["convert", str(folder), str(empty)]))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write"
)
def test_a_read_only_folder_is_one_line(tmp_path):
    source = cmjax_folder(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    destination = tmp_path / "locked" / "m"
    result = CliRunner().invoke(cli.main, ["convert", str(source), str(destination)])
    assert_one_line(result, "Permission denied")


@pytest.mark.parametrize("to", KINDS)
def test_arrays_in_any_order_in_memory_are_saved(tmp_path, to):
    def column_by_column(leaf):
        return np.asfortranarray(np.asarray(leaf))

    cmjax.save(tmp_path / "model", mapped(column_by_column), to=to)
    found = cmjax.load(tmp_path / "model").params
    chex.assert_trees_all_equal(found, tiny.model().params)


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(tmp_path):
    cmjax.save(tmp_path / "model", tiny.model())
    opened = loading.open_checkpoint(tmp_path / "model")
    cmjax.save(tmp_path / "model", mapped(lambda leaf: leaf + 1))
    with pytest.raises(ValueError, match="was replaced while it was read; load it again"):
        opened.load()


def test_a_model_that_is_replaced_while_it_is_loaded_is_loaded_again(tmp_path, monkeypatch):
    cmjax.save(tmp_path / "model", tiny.model())
    later = mapped(lambda leaf: leaf + 1)
    open_checkpoint = loading.open_checkpoint

    def replaced_after_opening(*args, **options):
        opened = open_checkpoint(*args, **options)
        if not replaced:
            replaced.append(True)
            cmjax.save(tmp_path / "model", later)
        return opened

    replaced = []
    monkeypatch.setattr(loading, "open_checkpoint", replaced_after_opening)
    chex.assert_trees_all_equal(cmjax.load(tmp_path / "model").params, later.params)


def test_a_file_that_is_put_into_a_model_is_not_a_replacement(tmp_path, monkeypatch):
    cmjax.save(tmp_path / "model", tiny.model())
    open_checkpoint = loading.open_checkpoint

    def written_meanwhile(*args, **options):
        opened.append(open_checkpoint(*args, **options))
        (tmp_path / "model" / f"log{len(opened)}.txt").write_text("")
        return opened[-1]

    opened = []
    monkeypatch.setattr(loading, "open_checkpoint", written_meanwhile)
    cmjax.load(tmp_path / "model")
    assert len(opened) == 1
