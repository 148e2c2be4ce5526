"""Networks and schedulers of one's own: registered or imported by name, never by a file alone."""

import dataclasses
import importlib
import json
import sys

import chex
import jax
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.checkpoints import open_checkpoint
from cmjax.models.registry import ARCHITECTURES, architecture, network_name
from cmjax.registry import scheduler_class
from cmjax.schedulers import SCHEDULERS
from tests.support import checkpoints, networks, own

NETWORK = "mypkg.nets:MyNet"
SOLVER = "mypkg.solvers:MySolver"


@pytest.fixture
def package(tmp_path, monkeypatch):
    yield own.install(tmp_path, monkeypatch)
    own.forget()


def my_model(scheduler=None):
    module, config_class = architecture(NETWORK)
    config = config_class(features=2, hidden=(5, 3))
    apply_fn, params = cmjax.from_nnx(module(config, rngs=nnx.Rngs(0)))
    scheduler = scheduler or cmjax.CMStochasticIterativeScheduler()
    return cmjax.Model(apply_fn, params, scheduler, config)


def test_a_network_is_imported_by_name(package):
    model = my_model()
    assert network_name(model.config) == NETWORK
    assert model.sample(jax.random.key(0), 3).shape == (3, 2)
    assert "My, " in repr(model) and "samples: 2, no classes" in repr(model)


def test_it_is_saved_and_loaded_where_the_file_is_trusted(package, tmp_path):
    model = my_model()
    cmjax.save(tmp_path / "m", model)
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == {
        "_class_name": NETWORK,
        "features": 2,
        "hidden": [5, 3],
    }
    # As in a new process: the file alone may not import anything.
    own.forget()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"config.json: .*'mypkg.nets:MyNet'.*trust=True"
        ):
            cmjax.load(tmp_path / "m")
        assert "mypkg" not in sys.modules
    loaded = cmjax.load(tmp_path / "m", trust=True)
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(model.config)
    chex.assert_trees_all_equal(
        jax.tree.leaves(loaded.params), jax.tree.leaves(model.params)
    )
    cmjax.load(tmp_path / "m")  # it is known now


def test_a_file_imports_nothing(tmp_path):
    cmjax.save(tmp_path / "m", checkpoints.model())
    checkpoints.edit(tmp_path / "m" / "config.json", _class_name="antigravity:fly")
    with pytest.raises(ValueError, match="not part of cmjax"):
        cmjax.load(tmp_path / "m")
    assert "antigravity" not in sys.modules


def test_a_registered_network_needs_no_trust(package, tmp_path):
    cmjax.save(tmp_path / "m", my_model())
    own.forget()
    nets = importlib.import_module("mypkg.nets")
    assert cmjax.register(nets.MyNet) is nets.MyNet
    assert type(cmjax.load(tmp_path / "m").config) is nets.MyConfig


def test_networks_that_differ_are_kept_apart_where_their_configs_are_equal(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        features: int = 2
        factor: float = dataclasses.field(default=1.0, compare=False)

    class Scaled(nnx.Module):
        def __init__(self, config: Config, *, rngs: nnx.Rngs):
            self.config = config
            self.linear = nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x, t):
            return self.config.factor * self.linear(x)

    class Rewritten(Scaled):
        def __call__(self, x, t):
            return -super().__call__(x, t)

    # The class of a notebook's cell that is run again is another object of the same name.
    Rewritten.__qualname__ = Scaled.__qualname__
    x = np.ones((3, 2), np.float32)

    def loaded(cls, factor):
        cmjax.register(cls, Config, name="scaled")
        apply_fn, params = cmjax.from_nnx(cls(Config(factor=factor), rngs=nnx.Rngs(0)))
        scheduler = cmjax.CMStochasticIterativeScheduler()
        model = cmjax.Model(apply_fn, params, scheduler, Config(factor=factor))
        path = tmp_path / f"{cls.__name__}{factor}"
        cmjax.save(path, model)
        model = cmjax.load(path)
        return model.apply_fn(model.params, x, np.ones(3, np.float32))

    try:
        once = loaded(Scaled, 1.0)
        chex.assert_trees_all_close(loaded(Scaled, 2.0), 2 * once)
        chex.assert_trees_all_close(loaded(Rewritten, 1.0), -once)
    finally:
        del ARCHITECTURES["scaled"]


def test_names_and_config_classes_of_ones_own(package):
    nets = importlib.import_module("mypkg.nets")

    @dataclasses.dataclass(frozen=True)
    class Other(nets.MyConfig):
        pass

    cmjax.register(nets.NoConfig, Other, name="mypkg's")
    try:
        assert architecture("mypkg's") == (nets.NoConfig, Other)
        assert network_name(Other()) == "mypkg's"
    finally:
        del ARCHITECTURES["mypkg's"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoConfig", "the config of NoConfig is not known.*def __init__"),
        ("Thawed", "the config of 'mypkg.nets:Thawed' must be a frozen dataclass"),
        ("MyConfig", "network .* must be a subclass of flax.nnx.Module"),
        ("MyNte", "has no 'MyNte'; did you mean 'MyNet'"),
    ],
)
def test_networks_that_are_none(package, name, message):
    with pytest.raises(ValueError, match=message):
        architecture(f"mypkg.nets:{name}")


def test_what_cannot_be_registered(package):
    nets = importlib.import_module("mypkg.nets")
    with pytest.raises(
        ValueError, match="UNet2DConfig is the config of the network 'UNet2D'"
    ):
        cmjax.register(nets.MyNet, cmjax.models.UNet2DConfig)
    with pytest.raises(ValueError, match="name 'DiT' is taken by a network of cmjax"):
        cmjax.register(nets.MyNet, name="DiT")
    with pytest.raises(
        ValueError, match="there is no network 'Unet2D'; did you mean 'UNet2D'"
    ):
        architecture("Unet2D")
    with pytest.raises(
        ValueError, match="model.config must be the config of one of UNet2D, DiT"
    ):
        network_name(nets.MyConfig())


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\x1b[2J", 3, b"a", ["a"], "a" * 201])
def test_names_that_files_could_not_hold(package, name):
    nets = importlib.import_module("mypkg.nets")
    solvers = importlib.import_module("mypkg.solvers")
    for cls in (nets.MyNet, solvers.MySolver):
        with pytest.raises(ValueError, match="name must be printable text of 1 to 200"):
            cmjax.register(cls, name=name)


def test_abstract_classes_and_names_of_other_classes(package):
    nets = importlib.import_module("mypkg.nets")
    solvers = importlib.import_module("mypkg.solvers")

    class Unfinished(cmjax.Scheduler):
        pass

    with pytest.raises(
        ValueError, match="cls Unfinished is abstract: it does not define add_"
    ):
        cmjax.register(Unfinished)
    for wrong in (None, 3, nets, solvers.MySolver()):
        with pytest.raises(ValueError, match="cls must be a subclass of flax.nnx.Module"):
            cmjax.register(wrong)

    # The same class again, as where its module is run twice, but no other one.
    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Other(solvers.MySolver):
        pass

    cmjax.register(solvers.MySolver, name="mypkg's")
    try:
        own.forget()
        again = importlib.import_module("mypkg.solvers").MySolver
        assert again is not solvers.MySolver
        cmjax.register(again, name="mypkg's")
        with pytest.raises(
            ValueError, match='name "mypkg\'s" is taken by mypkg.solvers:MyS'
        ):
            cmjax.register(Other, name="mypkg's")
    finally:
        SCHEDULERS.pop("mypkg's", None)


def test_a_config_with_values_of_other_types_is_named(package, tmp_path):
    cmjax.save(tmp_path / "m", my_model())
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features": [1, 2]}))
    with pytest.raises(ValueError, match="the config makes no network: TypeError"):
        open_checkpoint(tmp_path / "m").check()


def test_a_network_with_other_variables_is_not_saved(package, tmp_path):
    module, config = architecture("mypkg.nets:Stateful")
    apply_fn, params = cmjax.from_nnx(module(config(), rngs=nnx.Rngs(0)))
    scheduler = cmjax.CMStochasticIterativeScheduler()
    with pytest.raises(
        ValueError, match="variables of type BatchStat; only nnx.Param is stored"
    ):
        cmjax.save(tmp_path / "m", cmjax.Model(apply_fn, params, scheduler, config()))
    assert not (tmp_path / "m").exists()


def test_a_scheduler_of_ones_own(package, tmp_path):
    solver = scheduler_class(SOLVER)(s_noise=0.25)
    model = dataclasses.replace(checkpoints.model(), scheduler=solver)
    cmjax.save(tmp_path / "m", model)
    assert cmjax.load(tmp_path / "m").scheduler == solver
    own.forget()
    with pytest.raises(ValueError, match=r"scheduler_config.json: .*MySolver'.*trust=True"):
        cmjax.load(tmp_path / "m")
    assert cmjax.load(tmp_path / "m", trust=True).scheduler.s_noise == 0.25
    own.forget()
    solvers = importlib.import_module("mypkg.solvers")
    assert cmjax.register(solvers.MySolver) is solvers.MySolver
    assert type(cmjax.load(tmp_path / "m").scheduler) is solvers.MySolver
    with pytest.raises(ValueError, match="is taken by a scheduler of cmjax"):
        cmjax.register(solvers.MySolver, name="DDIMScheduler")
    with pytest.raises(ValueError, match="must be a subclass of Scheduler"):
        scheduler_class("mypkg.solvers:dataclasses")


def run(*args):
    return CliRunner().invoke(cli.main, list(map(str, args)))


def test_the_command_line(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cmjax.save("mine", my_model())
    cmjax.save("tiny", checkpoints.model())
    own.forget()
    result = run("info", "mine")
    assert (
        result.exit_code == 2
        and "--trust" in result.stderr
        and "trust=" not in result.stderr
    )
    result = run("info", "mine", "--trust")
    assert result.exit_code == 0 and NETWORK in result.stdout, result.output
    own.forget()
    assert run("convert", "mine", "copy").exit_code == 2
    assert run("convert", "mine", "copy", "--trust").exit_code == 0
    sample = ["sample", "--num", 2, "--model", "tiny", "--out", "x.npz", "--quiet"]
    result = run(*sample, "--scheduler", SOLVER, "--set", "s_noise=0", "--steps", 2)
    assert result.exit_code == 0, result.output
    result = run(*sample, "--scheduler", "mypkg.solvers:MySlover")
    assert result.exit_code == 2 and "did you mean 'MySolver'?" in result.stderr
    assert np.load("x.npz")


@pytest.mark.thorough
@jax.numpy_dtype_promotion("standard")  # optax needs it
def test_training_by_name_and_on_folders_of_classes(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("data.npz", images=rng.normal(size=(8, 3)).astype(np.float32))
    common = [
        "--set",
        "run.steps=2",
        "--set",
        "run.batch_size=8",
        "--set",
        "run.sample_every=0",
    ]
    (tmp_path / "own.toml").write_text(
        f'[network]\nclass = "{NETWORK}"\nhidden = [4]\n[scheduler]\nclass = "{SOLVER}"\n'
        '[loss]\nname = "ct"\n[data]\nsource = "data.npz"\n'
    )
    result = run("train", "own.toml", "--quiet", *common)
    assert result.exit_code == 0, result.output
    model = cmjax.load("runs/own")
    assert (
        network_name(model.config) == NETWORK
        and type(model.scheduler).__name__ == "MySolver"
    )

    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            picture = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{i}.png")
    cmjax.save("tiny", networks.tiny_model(num_classes=2))
    (tmp_path / "folders.toml").write_text(
        '[loss]\nname = "ct"\n[data]\nsource = "pictures"\n[run]\ninit = "tiny"\n'
    )
    result = run("train", "folders.toml", "--quiet", *common)
    assert result.exit_code == 0, result.output
    assert "2 classes (cats, dogs)" in run("info", "runs/folders").stdout
    result = run("sample", "--model", "runs/folders", "--labels", "dogs,cats", "--num", 3)
    assert result.exit_code == 0, result.output
    result = run("sample", "--model", "runs/folders", "--labels", "bird", "--num", 3)
    assert result.exit_code == 2 and "--labels: there is no class 'bird'" in result.stderr
