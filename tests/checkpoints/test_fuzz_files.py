"""Any value in a checkpoint's JSON, any name and shape in its tables: a sentence, or a finite chunk."""

import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints.test_damage import act, make_converted, make_ours
from tests.fuzzing import fuzz
from vla.errors import StatisticsError, VlaError
from vla.transforms.base import Pipeline
from vla.transforms.statistics import FeatureStats, Statistics

FILES = {
    "vla": ("pipeline.json", "statistics.json", "config.json", "tokenizer_config.json"),
    "lerobot": ("policy_preprocessor.json", "policy_postprocessor.json", "config.json"),
    "transformers": ("processor_config.json", "config.json"),
    "openpi": ("assets/vla/norm_stats.json", "config.json"),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([10**6, 10**12, 10**30, -(10**30), 1e-320, 1e300, float("nan"), float("inf")])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["top", "wrist", "state", "zscore", "quantile", "pi0", "pi05", "vla", "lerobot"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_ours(folder)
    for name in FILES.keys() - {"vla"}:
        make_converted(name)(folder)
        if name != "lerobot":  # their own files, without ours that would have to agree
            for ours in ("pipeline.json", "statistics.json"):
                (folder / name / ours).unlink()
    return folder


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(value, path, new, is_gone):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and is_gone:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], new, is_gone)
    return copy


def acts_or_says(folder):
    """Load and act; whatever the files hold, the chunk is finite or the error ours."""
    try:
        chunk = act(folder)
    except VlaError:
        return
    assert np.isfinite(chunk).all()


@fuzz(examples=24)
@given(data=st.data())
def test_fuzz_any_value_anywhere_in_a_checkpoints_json(home, data):
    name = data.draw(st.sampled_from(sorted(FILES)))
    path = home / name / data.draw(st.sampled_from(FILES[name]))
    content = path.read_bytes()
    read = json.loads(content)
    try:
        for _ in range(data.draw(st.integers(1, 2))):
            where = data.draw(st.sampled_from(sorted(places(read), key=str)))
            read = changed(read, where, data.draw(VALUES), data.draw(st.booleans()))
        path.write_text(json.dumps(read))
        acts_or_says(home / name)
    finally:
        path.write_bytes(content)


@fuzz(examples=24)
@given(data=st.data())
def test_fuzz_any_name_and_shape_in_a_table_of_tensors(home, data):
    """The header of a safetensors file: names, dtypes, shapes, offsets."""
    name = data.draw(st.sampled_from(sorted(FILES)))
    path = home / name / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    try:
        key = data.draw(st.sampled_from(sorted(header)))
        parts = data.draw(st.sampled_from(["name", "swap", "value", "field"]))
        if parts == "name":
            header[data.draw(st.text(max_size=6) | st.just(key + ".twin"))] = header.pop(key)
        elif parts == "swap":
            other = data.draw(st.sampled_from(sorted(header)))
            header[key], header[other] = header[other], header[key]
        elif parts == "value" or not isinstance(header[key], dict):
            header[key] = data.draw(VALUES)
        else:
            field = data.draw(st.sampled_from(sorted(header[key])))
            header[key] = {**header[key], field: data.draw(VALUES)}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + values)
        acts_or_says(home / name)
    finally:
        path.write_bytes(content)


@fuzz(examples=100)
@given(values=VALUES | st.fixed_dictionaries({"features": VALUES, "source": VALUES}))
def test_fuzz_statistics_are_read_or_refused(tmp_path, values):
    (tmp_path / "statistics.json").write_text(json.dumps(values))
    try:
        read = Statistics.load(tmp_path)
    except StatisticsError:
        return
    for feature in read.features.values():
        assert all(np.isfinite(getattr(feature, vector)).all() for vector in feature.held)


VECTORS = st.sampled_from(["mean", "std", "min", "max", "q01", "q99", "count", "more"])


@fuzz(examples=100)
@given(feature=st.dictionaries(VECTORS, st.lists(st.floats(), max_size=3) | VALUES, max_size=7))
def test_fuzz_a_features_statistics(tmp_path, feature):
    (tmp_path / "statistics.json").write_text(json.dumps({"features": {"state": feature}}))
    try:
        read = Statistics.load(tmp_path).features["state"]
    except StatisticsError:
        return
    assert isinstance(read, FeatureStats)
    assert all(len(getattr(read, vector)) == read.width for vector in read.held)


STEPS = st.sampled_from(
    ["normalize", "resize_images", "pad_dimensions", "delta_actions", "flip_signs", "linear_map",
     "slider_crank", "rotate_images", "rename_cameras", "camera_tensors", "default_task", "augment_images",
     "tokenize_prompt", "tokenize_state_prompt", "nonsense"]
)  # fmt: skip
FIELDS = st.sampled_from(
    ["modes", "formula", "slots", "size", "mask", "state", "actions", "feature", "dims", "robot", "policy",
     "degrees", "cameras", "task", "max_length", "response", "verbatim", "tokenizer", "state_dim"]
)  # fmt: skip


@fuzz(examples=100)
@given(
    steps=st.lists(
        st.builds(
            lambda kind, fields: {**fields, "type": kind}, STEPS, st.dictionaries(FIELDS, VALUES, max_size=4)
        ),
        max_size=3,
    ),
    interface=st.none()
    | VALUES
    | st.fixed_dictionaries({"cameras": VALUES, "state": VALUES, "action": VALUES}),
)
def test_fuzz_pipelines_are_read_or_refused(tmp_path, steps, interface):
    written = {"steps": steps} | ({} if interface is None else {"interface": interface})
    (tmp_path / "pipeline.json").write_text(json.dumps(written))
    try:
        pipeline = Pipeline.load(tmp_path)
    except VlaError:
        return
    assert len(pipeline.transforms) == len(steps)
    shutil.rmtree(tmp_path / "again", ignore_errors=True)
    (tmp_path / "again").mkdir()
    pipeline.save(tmp_path / "again")
