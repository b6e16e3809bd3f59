"""`import vla` is light, and every public name it promises resolves."""

import subprocess
import sys
from pathlib import Path

import pytest

import vla
from tests.rules.source import PACKAGE
from vla.policies.registry import policy_names

HEAVY = ("torch", "transformers", "accelerate", "numpy", "matplotlib", "av", "pyarrow", "gymnasium")


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after running `code`."""
    report = (
        f"import sys\n{code}\nsys.stdout.write('\\n' + ' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_probe_sees_a_heavy_import():
    assert loaded_by("import numpy") == {"numpy"}


def test_import_vla_is_light():
    assert loaded_by("import vla\nvla.__version__\nvla.errors.VlaError\ndir(vla)") == set()


def test_help_is_light():
    code = "import vla.cli\ntry:\n    vla.cli.main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_by(code) == set()


@pytest.mark.parametrize("name", vla.__all__)
def test_public_name_resolves(name):
    assert getattr(vla, name) is not None
    assert name in dir(vla)


def test_unknown_name_is_an_attribute_error_with_a_hint():
    with pytest.raises(AttributeError, match="Did you mean 'AutoPolicy'"):
        _ = vla.AutoPolice


def missing_policy_files(folder: Path) -> list[str]:
    wanted = ["__init__.py", "config.py", "model.py", "policy.py", "pipeline.py"]
    return [name for name in wanted if not (folder / name).is_file()]


def test_every_policy_folder_is_complete():
    named = [PACKAGE / "policies" / name for name in policy_names()]
    folders = [folder for folder in named if folder.is_dir()]  # others have joined from outside
    assert folders, "no policy at all"
    assert {folder.name: missing_policy_files(folder) for folder in folders} == {
        folder.name: [] for folder in folders
    }


def test_incomplete_policy_folder_is_found(tmp_path):
    (tmp_path / "config.py").touch()
    assert missing_policy_files(tmp_path) == ["__init__.py", "model.py", "policy.py", "pipeline.py"]
