"""docs/execution.md runs as it stands."""

from contextlib import redirect_stdout
from io import StringIO

from tests.docs.snippets import PAGES, run_page
from tests.policies.conftest import make_robot_policy
from tests.policies.test_robot import make_observation
from vla.policies.robot import RobotPolicy


class Arm:
    """What the page's reader has."""

    def __init__(self):
        self.sent = []

    def observe(self):
        return make_observation()

    def send(self, action):
        self.sent.append(action)


def test_the_page_runs():
    arm, said = Arm(), StringIO()
    with redirect_stdout(said):
        names = run_page("execution.md", robot=arm, robot_policy=RobotPolicy(make_robot_policy()))
    assert len(arm.sent) == 10 + 7 + 2
    assert all(action.shape == (2,) for action in arm.sent)
    printed = str(names["sources"])
    assert printed in said.getvalue()
    assert f"print(sources)  # {printed}" in (PAGES / "execution.md").read_text()
    for name in ("best", "near", "calm"):
        assert names[name].shape == (6, 2)
