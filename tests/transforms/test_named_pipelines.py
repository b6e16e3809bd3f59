import pytest

from vla.errors import ConfigError
from vla.transforms import Pipeline
from vla.transforms.actions import PadDimensions
from vla.transforms.named_pipelines import (
    check_choice,
    check_name,
    pipeline_names,
    read_pipelines,
    write_pipelines,
)


def test_each_comes_back_under_its_name(tmp_path):
    pipelines = {
        name: Pipeline([PadDimensions(width, width, 8, 8)]) for name, width in (("b", 2), ("a.1", 3))
    }
    write_pipelines(pipelines, tmp_path)
    assert pipeline_names(tmp_path) == ["a.1", "b"]
    assert not (tmp_path / "pipeline.json").exists()
    read = read_pipelines(tmp_path)
    assert {name: one.transforms for name, one in read.items()} == {
        name: one.transforms for name, one in pipelines.items()
    }


def test_none_leaves_no_trace(tmp_path):
    write_pipelines({}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (pipeline_names(tmp_path), read_pipelines(tmp_path)) == ([], {})


def test_one_robots_pipeline_lies_at_the_top(tmp_path):
    pipeline = Pipeline([PadDimensions(2, 2, 8, 8)])
    write_pipelines({None: pipeline}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline.json"]
    ((name, read),) = read_pipelines(tmp_path).items()
    assert (name, read.transforms) == (None, pipeline.transforms)
    assert pipeline_names(tmp_path) == []


def test_one_robots_pipeline_is_not_among_those_of_several(tmp_path):
    with pytest.raises(ConfigError, match=r"named ones \(arm\), not both"):
        write_pipelines({None: Pipeline([]), "arm": Pipeline([])}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a b"])
def test_names_are_those_of_folders(name, tmp_path):
    with pytest.raises(ConfigError, match="cannot name a pipeline"):
        check_name(name)
    with pytest.raises(ConfigError, match="cannot name a pipeline"):
        write_pipelines({name: Pipeline([])}, tmp_path)


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (["aloha", "widowx"], None, r"statistics: aloha, widowx.*--pipeline aloha"),
        (["aloha", "widowx"], "alohe", r"'alohe', only: aloha, widowx\. Did you mean 'aloha'\?"),
        ([], "aloha", r"of one robot: leave out pipeline='aloha'"),
    ],
)
def test_errors_list_the_names(names, asked, said):
    with pytest.raises(ConfigError, match=said):
        check_choice(names, asked)


def test_a_choice_that_fits_is_none_of_one_robot_or_a_name_of_several():
    check_choice([], None)
    check_choice(["aloha", "widowx"], "widowx")
