import json

import pytest

from vla.errors import ConfigError
from vla.transforms import Pipeline, RobotInterface, VectorInterface
from vla.transforms.task import DefaultTask

ROBOT = RobotInterface(
    cameras={"top": (480, 640), "wrist": None},
    state=VectorInterface(("x", "y"), ("m", None), (0.0, None), (1.0, None)),
    action=VectorInterface(("dx", "dy")),
    frequency=50.0,
)


def test_it_is_saved_with_the_pipeline(tmp_path):
    pipeline = Pipeline([DefaultTask("go")], ROBOT)
    pipeline.save(tmp_path)
    assert json.loads((tmp_path / "pipeline.json").read_text())["interface"]["state"]["units"] == ["m", None]
    loaded = Pipeline.load(tmp_path)
    assert loaded.interface == ROBOT
    assert loaded.before(DefaultTask).interface == ROBOT
    assert loaded.replaced([]).interface == ROBOT
    assert loaded.with_tokenizer(None).interface == ROBOT


def test_a_pipeline_of_before_has_none_and_stays_as_it_is(tmp_path):
    Pipeline([DefaultTask("go")]).save(tmp_path)
    assert set(json.loads((tmp_path / "pipeline.json").read_text())) == {"steps"}
    assert Pipeline.load(tmp_path).interface is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ["top"]}, "of another kind than expected"),
        ({"state": {"labels": ["x"]}}, "is not known there"),
        ({"state": {"names": ["x"], "units": ["m", "m"]}}, "1 dimensions .x. needs as many units, got 2"),
    ],
)
def test_a_damaged_one_is_refused(tmp_path, change, message):
    Pipeline([], ROBOT).save(tmp_path)
    values = json.loads((tmp_path / "pipeline.json").read_text())
    values["interface"] |= change
    (tmp_path / "pipeline.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        Pipeline.load(tmp_path)


def test_names_and_limits_belong_together():
    assert VectorInterface(("x", "y")).low == (None, None)
    assert len(ROBOT.state) == 2
    assert ROBOT.action_names == ("dx", "dy")
