"""Seams and paired losses of traces made up here; a policy that does not react fails the table."""

from dataclasses import replace

import numpy as np
import pytest

from vla.bench.execution.episodes import Trace, run_episodes
from vla.bench.execution.options import ExecutionOptions
from vla.bench.execution.report import ExecutionReport, distances, paired, row_of
from vla.bench.execution.run import FREE, run_execution, strategies, trained
from vla.bench.execution.work import work_folder
from vla.errors import ConfigError
from vla.eval.envs.detour import STATE, DetourEnv
from vla.eval.envs.detour_embodiment import FAST, FAST_ABSOLUTE

HORIZON = 16
OPTIONS = ExecutionOptions(layouts=4)


class Planning:
    """Answers with the expert's way from where the robot is, of the layout whose start it recognises."""

    past = 0

    def __init__(self, seeds, robot):
        self.robot, self.layouts = robot, []
        for seed in seeds:
            env = DetourEnv(16, embodiment=robot)
            env.reset(seed=seed, options={"side": None})
            self.layouts.append(env.layout)

    def infer_batch(self, observations, *, generator=None, continuing=None):
        return [{"actions": self.plan(one[STATE])} for one in observations]

    def plan(self, position):
        """[a, 2], of the only layout."""
        (layout,) = self.layouts
        way = [np.asarray(position, np.float64)]
        for _ in range(HORIZON):
            way.append(way[-1] + self.robot.expert("left").act(layout, way[-1]))
        points = np.array(way)
        return (points[1:] if self.robot.absolute else np.diff(points, axis=0)).astype(np.float32)


class Constant(Planning):
    """Goes straight on, whatever it sees."""

    def plan(self, position):
        step = np.array([0.0, 0.016], np.float32)
        if not self.robot.absolute:
            return np.tile(step, (HORIZON, 1))
        return position + step * np.arange(1, HORIZON + 1, dtype=np.float32)[:, None]


def rows(policy, options, seeds):
    """Every strategy of a policy that was trained as usual."""
    report, without = ExecutionReport("", {}, {}), None
    for name, of, latency, make in strategies(options):
        if of != FREE:
            continue
        traces = run_episodes(policy, make, options.robot, seeds, latency=latency, batch=8, noise_seed=0)
        without = without or traces
        report.rows.append(row_of(name, traces, without, options.robot.fps))
    return report


@pytest.mark.parametrize("actions", ["positions", "displacements"])
def test_a_plan_that_is_exact_survives_latency(actions):
    """The world does as it is told, so that what was planned before is right now: no strategy loses."""
    options = replace(OPTIONS, actions=actions)
    report = rows(Planning([7], options.robot), options, [7])
    assert [row.success for row in report.rows] == [1.0] * 5
    assert report.row("asynchronous").seconds == report.row("no latency").seconds
    assert report.row("pausing").seconds > 1.3 * report.row("no latency").seconds
    assert report.findings[0].met


@pytest.mark.parametrize("actions", ["positions", "displacements"])
def test_a_constant_chunk_fails(actions):
    options = replace(OPTIONS, actions=actions)
    report = rows(Constant([7], options.robot), options, [7])
    assert report.rows[0].success == 0.0
    assert not report.findings[0].met


def test_another_layouts_trace_fails():
    """Replayed on layouts that it was not made for."""
    seeds = range(7, 13)
    report = rows(Planning([3], FAST_ABSOLUTE), OPTIONS, seeds)
    assert not report.findings[0].met


def trace(actions, sources, success=True):
    return Trace(success, not success, np.array(actions, np.float32)[:, None], np.array(sources))


def test_distances_across_seams_and_within_chunks():
    one = trace([0.0, 1.0, 2.0, 5.0, 6.5, 6.5, 6.5], [0, 0, 0, 3, 3, -1, -1])
    across, within = distances([one])
    np.testing.assert_allclose(across, [3.0, 0.0])  # to the second chunk, and to standing still
    np.testing.assert_allclose(within, [1.0, 1.0, 1.5])  # standing still is neither
    row = row_of("", [one], [one], fps=10)
    assert (row.jump, row.jump_p95) == pytest.approx((1.5, 2.85))
    assert row.excess == pytest.approx(1.5 - 3.5 / 3)
    assert row.seconds == pytest.approx(0.7)


def test_losses_are_paired():
    won, lost = trace([0, 1], [0, 0]), trace([0, 1], [0, 0], success=False)
    before, after = [won] * 8 + [lost, lost], [won] * 6 + [lost, lost] + [won, lost]
    differences = np.array([0.0] * 6 + [1.0] * 2 + [-1.0, 0.0])
    row = row_of("", after, before, fps=20)
    assert (row.success, row.loss) == (0.7, pytest.approx(0.1))
    spread = 1.959964 * differences.std(ddof=1) / np.sqrt(10)
    assert row.loss_interval == pytest.approx((0.1 - spread, 0.1 + spread))
    assert paired(differences)[0] == pytest.approx(0.1)


def test_latency_is_counted_in_whole_steps():
    assert [ExecutionOptions(latency=one).delay for one in (0.0, 0.05, 0.2, 0.201)] == [0, 1, 4, 5]
    assert ExecutionOptions(actions="displacements").robot is FAST
    with pytest.raises(ConfigError, match=r"got 'position'\. Did you mean 'positions'"):
        ExecutionOptions(actions="position")
    with pytest.raises(ConfigError, match="execute must be at least 1, got 0"):
        ExecutionOptions(execute=0)


def test_a_folder_is_used_again_with_the_same_settings_alone(tmp_path):
    options = replace(OPTIONS, work=tmp_path / "work")
    with work_folder(options) as folder:
        before = (folder / "execution.json").read_bytes()
    with work_folder(replace(options, actions="relative", latency=0.1)):
        pass
    with (
        pytest.raises(ConfigError, match="was made with steps=4000, now it is 10"),
        work_folder(replace(options, steps=10)),
    ):
        pass
    assert (folder / "execution.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"execute": 20}, r"execute must lie in 4 to 12, .* got 20"),
        ({"execute": 3}, r"execute must lie in 4 to 12, .* got 3"),
        ({"max_prefix": 3}, r"max_prefix must be at least 4, .* got 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_recorded(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        run_execution(replace(OPTIONS, work=tmp_path / "work", **options))
    assert not (tmp_path / "work").exists()


def test_a_training_that_did_not_end_is_not_measured(tmp_path):
    (tmp_path / "demonstrations_absolute").mkdir()
    (tmp_path / "positions_free" / "checkpoints" / "step-000500").mkdir(parents=True)
    with pytest.raises(ConfigError, match="positions_free did not reach its 4000 steps"):
        trained(OPTIONS, tmp_path, print)
