"""`python -m tests.parity.golden`: it passes where it should, and fails wherever the truth is moved."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parity.golden import GOLDENS, compare, compute, main, read_arrays
from tests.parity.goldens.form import Bound
from tests.parity.write_golden import write_golden

ROOT = Path(__file__).parents[2]
PUBLISHED = ("openpi_jax_pi0", "lerobot_pi05")
COMPARED = {
    "openpi_jax": ("v_openpi", "sample_1", "prefix_out"),
    "lerobot": ("loss", "sample_1"),
}


def form_of(name: str) -> str:
    return name.rsplit("_", 1)[0]


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    """Name -> folder of a golden of our own, written once."""
    root, written = tmp_path_factory.mktemp("goldens"), {}

    def folder(name: str) -> Path:
        if name.startswith("openpi_jax"):
            pytest.importorskip("tensorstore")
        if name not in written:
            write_golden(name, root / name)
            written[name] = root / name
        return written[name]

    return folder


@pytest.fixture(scope="module", params=[*GOLDENS, *(f"published {name}" for name in PUBLISHED)])
def golden(request, goldens):
    """Name, folder, and what was computed of it with its arrays."""
    published, name = request.param.startswith("published"), request.param.split()[-1]
    if published and name.startswith("openpi_jax"):
        pytest.importorskip("tensorstore")
    folder = request.getfixturevalue("shared_dir") / "goldens" / name if published else goldens(name)
    return name, folder, *compute(name, folder)


def change(folder: Path, target: Path, **arrays: np.ndarray | None) -> Path:
    """Return a golden with the same checkpoint and other arrays; None leaves one out."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name != "io.npz":
            (target / path.name).symlink_to(path)
    changed = {**read_arrays(folder / "io.npz"), **arrays}
    np.savez(target / "io.npz", **{name: array for name, array in changed.items() if array is not None})
    return target


def refused(name: str, folder: Path, capsys) -> str:
    assert main([name, str(folder)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


# -- what passes and what fails ---------------------------------------------------------------------------


def test_goldens_pass(golden):
    name, _, computed, arrays = golden
    verdicts = list(compare(computed, arrays))
    assert [verdict for verdict in verdicts if not verdict.ok] == []
    named = {verdict.name for verdict in verdicts}
    assert named >= set(COMPARED[form_of(name)])
    assert named == set(arrays) - computed.inputs


def failing(computed, arrays) -> list[str]:
    return [verdict.name for verdict in compare(computed, arrays) if not verdict.ok]


def test_truth_moved_by_ten_bounds_fails(golden):
    """Everywhere, and in one entry alone: the first that counts, the last, and the largest."""
    _, _, computed, arrays = golden
    for name, quantity in computed.quantities.items():
        truth = arrays[name]
        step = 10 * quantity.bound.allowed(truth)
        assert failing(computed, {**arrays, name: (truth + step).astype(np.float32)}) == [name]
        assert failing(computed, {**arrays, name: truth + np.float32(1e-4)}) == [name]
        counts = np.ones(truth.shape, bool)
        if quantity.counts is not None:
            counts &= quantity.counts[(..., *[None] * (truth.ndim - quantity.counts.ndim))]
        entries = np.flatnonzero(counts)
        for entry in (entries[0], entries[-1], entries[np.abs(truth.flat[entries]).argmax()]):
            moved = truth.copy()
            moved.flat[entry] -= step.flat[entry]
            assert failing(computed, {**arrays, name: moved}) == [name]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_fails(golden, value):
    _, _, computed, arrays = golden
    for name, quantity in computed.quantities.items():
        moved = arrays[name].copy()
        moved[(0,) * moved.ndim] = value
        assert quantity.counts is None or quantity.counts[0, 0]
        assert failing(computed, {**arrays, name: moved}) == [name]


def test_a_truth_of_another_shape_fails(golden):
    _, _, computed, arrays = golden
    for name in computed.quantities:
        assert failing(computed, {**arrays, name: arrays[name][:1]}) == [name]


@pytest.mark.parametrize("name", GOLDENS)
def test_program(name, goldens, tmp_path, capsys):
    folder = goldens(name)
    assert main([name, str(folder)]) == 0
    report = capsys.readouterr().out
    line = r"  ok    sample_3 +largest difference \d\.\d\de-0\d, bound max\(1e-05, 4\.8e-07 \|x\|\)\n"
    assert re.search(line, report)
    assert report.endswith("passed\n")

    arrays = read_arrays(folder / "io.npz")
    moved = change(folder, tmp_path / "moved", sample_3=arrays["sample_3"] + np.float32(1e-4))
    assert main([name, str(moved)]) == 1
    report = capsys.readouterr().out
    assert re.search(r"  FAIL  sample_3 +largest difference 1\.\d\de-04, bound", report)
    assert report.endswith("FAILED: sample_3\n")


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("unknown", ["velocity", "sample_0", "sample_3_again", "mask_of_nothing"])
def test_an_array_that_is_not_compared_fails(name, unknown, goldens, tmp_path, capsys):
    folder = change(goldens(name), tmp_path / "golden", **{unknown: np.zeros(3, np.float32)})
    assert main([name, str(folder)]) == 1
    report = capsys.readouterr().out
    assert re.search(rf"  FAIL  {unknown} +neither an input nor compared\n", report)
    assert report.endswith(f"FAILED: {unknown}\n")


@pytest.mark.parametrize("name", ["openpi_jax_pi0", "lerobot_pi05"])
def test_every_input_matters(name, goldens, tmp_path, capsys):
    """A changed input moves every output, so no quantity is compared without being computed from it."""
    folder = goldens(name)
    arrays = read_arrays(folder / "io.npz")
    images = [one for one in arrays if one.startswith("small")]
    state = ["state"] if name == "openpi_jax_pi0" else []
    for one in ("tokens", *state, "noise", *images):
        other = arrays[one][::-1] if one != "tokens" else arrays[one][:, ::-1] * arrays["token_mask"]
        changed = change(folder, tmp_path / one, **{one: np.ascontiguousarray(other)})
        assert main([name, str(changed)]) == 1
        assert "sample_3" in capsys.readouterr().out.rpartition("FAILED")[2], one


def test_a_camera_that_lerobot_fills_in_may_be_missing(goldens, tmp_path, capsys):
    folder = goldens("lerobot_pi0")
    arrays = read_arrays(folder / "io.npz")
    arrays["masks"][-1] = False
    absent = change(folder, tmp_path / "absent", masks=arrays["masks"])
    fewer = change(folder, tmp_path / "fewer", small=arrays["small"][:-1], masks=arrays["masks"][:-1])
    outputs = [compute("lerobot_pi0", one)[0].quantities["sample_3"].got for one in (absent, fewer)]
    assert np.array_equal(*outputs)
    more = np.concatenate([arrays["small"]] * 2)
    folder = change(folder, tmp_path / "more", small=more)
    assert "'small' has 8 cameras, but config.json names 4." in refused("lerobot_pi0", folder, capsys)


def test_bounds_grow_with_the_truth_alone():
    truth = np.array([0.0, -0.5, 4.0, -100.0])
    assert Bound(1e-5).allowed(truth).tolist() == [1e-5] * 4
    assert Bound(1e-5, 1e-5).allowed(truth) == pytest.approx([1e-5, 1e-5, 4e-5, 1e-3])
    assert Bound(1e-5, 2e-5, 0.5).allowed(truth) == pytest.approx([1e-5, 2e-5 * 0.5**0.5, 4e-5, 2e-4])
    assert [str(Bound(1e-5)), str(Bound(1e-5, 2e-5, 0.5))] == ["1e-05", "max(1e-05, 2e-05 |x|^0.5)"]


# -- bad use ----------------------------------------------------------------------------------------------


def test_unknown_names_are_refused(tmp_path, capsys):
    error = refused("lerobot_pi5", tmp_path, capsys)
    assert error.startswith("error: There is no golden system 'lerobot_pi5', only openpi_jax_pi0, ")
    assert error.endswith("Did you mean 'lerobot_pi05'?\n")


def test_folders_without_a_golden_are_refused(tmp_path, capsys):
    assert "is not a folder" in refused("lerobot_pi0", tmp_path / "nowhere", capsys)
    assert "io.npz does not exist" in refused("lerobot_pi0", tmp_path, capsys)
    (tmp_path / "io.npz").write_text("nothing")
    assert "not a readable npz file" in refused("lerobot_pi0", tmp_path, capsys)
    np.savez(tmp_path / "io.npz", small=np.zeros(1))
    assert str(tmp_path) in refused("lerobot_pi0", tmp_path, capsys)  # no checkpoint


def test_other_systems_are_refused(goldens, capsys):
    assert "holds a Pi0Policy, but" in refused("lerobot_pi05", goldens("lerobot_pi0"), capsys)
    assert "no array 'small_<camera>'" in refused("openpi_jax_pi0", goldens("lerobot_pi0"), capsys)


def test_missing_arrays_are_refused(goldens, tmp_path, capsys):
    folder = goldens("lerobot_pi05")
    without = change(folder, tmp_path / "input", token_mask=None)
    assert "no array 'token_mask'" in refused("lerobot_pi05", without, capsys)
    outputs = dict.fromkeys(("loss", "sample_1", "sample_3", "sample_7"))
    without = change(folder, tmp_path / "outputs", **outputs)
    assert "holds nothing to compare" in refused("lerobot_pi05", without, capsys)
    odd = change(folder, tmp_path / "odd", small=np.zeros((2, 4, 5, 5, 3), np.uint8))
    assert "5 x 5 do not divide" in refused("lerobot_pi05", odd, capsys)


@pytest.mark.slow
def test_runs_from_anywhere(goldens, tmp_path):
    folder = goldens("lerobot_pi05")
    command = [sys.executable, "-m", "tests.parity.golden", "lerobot_pi05", folder.name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lerobot_pi05: Pi05Policy of lerobot_pi05\n")
