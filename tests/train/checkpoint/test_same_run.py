"""What a resumed run may change: where things lie, not what they are."""

import pytest

from vla.errors import TrainingError
from vla.train.checkpoint.same_run import continued, moved_base
from vla.train.recipe_file import load_recipe

MIXTURE = "data.mixture=[{path: a/x, weight: 1}, {path: a/y, weight: 2}]"


def recipe(*overrides):
    given = [] if any(one.startswith("data.mixture") for one in overrides) else ["data.path=d"]
    return load_recipe(None, [*given, "output=o", *overrides])


def resumes(before, now, checkpoint="c"):
    return continued(recipe(*before), recipe(*now), checkpoint)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([], ["data.path=/elsewhere/d/"]),
        (["data.robot=a.yaml"], ["data.robot=b/c.yaml"]),
        (["data.feature_cache=a", "data.augment=false"], ["data.feature_cache=b", "data.augment=false"]),
        (["policy.pretrained=a", "policy.adapter.rank=4"], ["policy.pretrained=b", "policy.adapter.rank=4"]),
        (["policy.tokenizer=gone/t"], ["policy.tokenizer=here/t"]),
        (["train.steps=6"], ["train.steps=9", "train.decay_steps=6"]),
        ([MIXTURE], [MIXTURE.replace("a/", "/mnt/")]),
    ],
)
def test_locations_may_change(before, now):
    resumes(before, now)


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ([], ["data.robot=b.yaml"], "data.robot"),
        (["data.augment=false"], ["data.augment=false", "data.feature_cache=b"], "data.feature_cache"),
        ([], ["policy.pretrained=b"], "policy.pretrained"),
        (["train.steps=6"], ["train.steps=9", "train.decay_steps=7"], "train.decay_steps"),
        ([MIXTURE], [MIXTURE.replace("weight: 2", "weight: 3")], "data.mixture.1.weight"),
        ([MIXTURE], ["data.mixture=[{path: a/x, weight: 1}]"], "data.mixture"),
        ([], [MIXTURE], "data.mixture"),
    ],
)
def test_what_changes_a_number_may_not(before, now, key):
    with pytest.raises(TrainingError, match=rf"c was trained by another recipe.*{key} \(was"):
        resumes(before, now)


def test_members_keep_their_names():
    now = resumes([MIXTURE], [MIXTURE.replace("a/x", "mnt/z/")])
    assert [member.name for member in now.data.mixture] == ["x", "y"]
    with pytest.raises(TrainingError, match=r"data\.mixture\.0\.name \(was 'x', now 'z'\)"):
        resumes([MIXTURE], [MIXTURE.replace("a/x,", "a/x, name: z,")])


def test_what_only_the_start_reads_may_have_moved_but_not_be_another(tmp_path, caplog):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with pytest.raises(TrainingError, match=r"policy\.pretrained \(was"):
        resumes([f"policy.pretrained={old}"], [f"policy.pretrained={new}"])
    resumes([f"policy.pretrained={old}"], [f"policy.pretrained={tmp_path}/./old/"])  # the same folder
    assert caplog.text == ""
    old.rename(new)
    resumes([f"policy.pretrained={old}"], [f"policy.pretrained={new}"])
    assert "a resumed run does not read it again" in caplog.text


def test_a_base_is_looked_for_where_the_recipe_says_if_it_moved(tmp_path):
    def adapted(path):
        return recipe(f"policy.pretrained={path}", "policy.adapter.rank=4")

    (tmp_path / "base").mkdir()
    assert moved_base(adapted(tmp_path / "base"), adapted(f"{tmp_path}/./base/")) is None
    assert moved_base(adapted(tmp_path / "gone"), adapted(tmp_path / "base")) == str(tmp_path / "base")
    assert moved_base(recipe("policy.pretrained=a"), recipe("policy.pretrained=b")) is None
