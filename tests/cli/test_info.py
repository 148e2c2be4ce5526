"""`cmjax info --json`."""

import json

from click.testing import CliRunner

from cmjax.checkpoints import BUNDLED
from cmjax.cli import main
from tests.support.cli import succeeded


def test_info_as_json_describes_the_bundled_model():
    result = succeeded(CliRunner().invoke(main, ["info", "--json"]))
    described = json.loads(result.stdout)
    assert described["kind"] == "cmjax folder"
    assert described["sample_shape"] == [28, 28, 1]
    assert described["num_classes"] == 10
    assert described["num_tensors"] == sum(described["dtypes"].values())
    assert described["network"]["class"] == "UNet2D"
    assert described["network"]["sample_size"] == 28
    assert described["scheduler"]["_class_name"] == "CMStochasticIterativeScheduler"

    # The same number as in the text.
    text = succeeded(CliRunner().invoke(main, ["info"])).stdout
    assert f"{described['num_parameters']:,} parameters" in text
    for file in described["files"]:
        assert file["path"].startswith(str(BUNDLED))
