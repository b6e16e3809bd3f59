"""Any value in a robot file, and any file in its place: a pipeline of finite numbers, or a sentence."""

import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints.test_fuzz_files import VALUES, changed, places
from tests.folders import files_of
from tests.fuzzing import fuzz
from tests.transforms.test_robots import ARM, SERVE
from vla.errors import VlaError
from vla.transforms import FeatureStats, Normalize, Pipeline, Statistics
from vla.transforms.robots import apply_robot, load_robot

LIKELY = st.sampled_from(
    ["j0", "j1", "grip", "base", "hand", "linear", "slider_crank", 90, -1, 0, 3, 1e308, 5e-324,
     [1, 1], [0, 0],
     [1, 0], [0, 1e-320], [-1e308, 1e308], [2, -1], ["j0", "j0"], [], {}, None]
)  # fmt: skip
CRANK = {
    "map": "slider_crank",
    "stroke": [0.01, 0.05],
    "arm_length": 0.036,
    "horn_radius": 0.022,
    "angle": [0.5, 1.6],
}


def drives_or_says(path):
    """Load the robot, and send a sample through its pipeline and back."""
    before = files_of(path.parent)
    try:
        robot = load_robot(path)
        widths = {"state": robot.state_dim, "actions": robot.action_dim}
        features = {
            name: FeatureStats(mean=(0.5,) * width, std=(1.0,) * width, count=9)
            for name, width in widths.items()
        }
        pipeline = apply_robot(
            Pipeline([Normalize(Statistics(features), {"state": "zscore", "actions": "zscore"})]), robot
        )
        sample = {
            "state": torch.zeros(robot.state_dim),
            "actions": torch.zeros(2, robot.action_dim),
            "task": "go",
        }
        made = pipeline.forward(sample)
        seen = pipeline.forward({"state": sample["state"], "task": "go"})
        assert torch.isfinite(made["state"]).all()
        assert torch.isfinite(made["actions"]).all()
        assert torch.isfinite(pipeline.inverse(seen | {"actions": made["actions"]})["actions"]).all()
    except VlaError as error:
        assert str(error)  # noqa: PT017
    assert files_of(path.parent) == before


@fuzz(examples=150)
@given(data=st.data())
def test_fuzz_any_value_anywhere_in_a_robot_file(tmp_path, data):
    values = {
        **ARM,
        "serve": SERVE,
        "state": {
            **ARM["state"],
            "scales": {"grip": data.draw(st.sampled_from([CRANK, ARM["state"]["scales"]["grip"]]))},
        },
    }
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(sorted(places(values), key=str)))
        values = changed(values, where, data.draw(LIKELY | VALUES), data.draw(st.booleans()))
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(values))
    drives_or_says(tmp_path / "robot.yaml")


@fuzz(examples=100)
@given(
    content=st.binary(max_size=40)
    | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    place=st.integers(0, 900),
)
def test_fuzz_any_bytes_in_a_robot_file(tmp_path, content, place):
    whole = yaml.safe_dump(ARM).encode()
    (tmp_path / "robot.yaml").write_bytes(whole[:place] + content + whole[place + len(content) :])
    drives_or_says(tmp_path / "robot.yaml")
