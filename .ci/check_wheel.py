"""Build the wheel, install it in a fresh environment outside the checkout, and use it there.

    python .ci/check_wheel.py [--constraints FILE] [--full-demo]

The environment gets what the wheel asks for, no extras. Then: `vla --version`, `vla info known`, `vla demo`
(cut short unless --full-demo), `vla recipes` and a training with one of them, and the Python of the README,
over the demo's policy and demonstrations. Run from a folder that is not the checkout, so that nothing of the
checkout can be imported by accident.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SHORT_DEMO = ("--demonstrations", "8", "--layouts", "3", "--steps", "4")

BEFORE_README = """
import numpy as np
import torch

image, state = np.zeros((64, 64, 3), np.uint8), np.zeros(2)
"""

BEFORE_NETWORK = """
from vla.data.sample import to_canonical
from vla.transforms.batch import collate

sample = to_canonical(dataset[0], {"top": "observation.images.top"})
batch = collate([policy.pipeline.forward(sample)])
names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")
pixel_values, pixel_mask, input_ids, attention_mask, state = (batch[name] for name in names)
x, tau = torch.zeros_like(batch["actions"]), torch.zeros(1)
"""
"""What the README's names stand for in its half on the bare network."""

AFTER_README = """
assert dataset[0]["observation.state"].shape == (2,) and chunk.shape[1] == 2
assert np.isfinite(chunk).all() and velocity.shape == x.shape and torch.isfinite(velocity).all()
"""


def main() -> None:
    """Build, install and use the wheel; the first command that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--constraints", type=Path, default=ROOT / ".ci/constraints.txt")
    parser.add_argument("--full-demo", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vla-wheel-") as name:
        folder = Path(name)
        python = install(folder, options.constraints.resolve())
        vla = str(python.parent / "vla")
        outside = folder / "outside"
        outside.mkdir()
        run(outside, vla, "--version")
        run(outside, vla, "info", "known")
        run(outside, vla, "demo", "--output", "demo_run", *(() if options.full_demo else SHORT_DEMO))
        run(outside, vla, "info", "demo_run/flow/checkpoints/last")
        run(outside, vla, "recipes")
        shipped = {path.relative_to(ROOT / "vla") for path in (ROOT / "vla/recipes").rglob("*.yaml")}
        if absent := [str(path) for path in shipped if not (outside / path).is_file()]:
            sys.exit(f"the wheel lacks {absent}")
        data = ("data.path=demo_run/demonstrations", "output=runs/first", "train.steps=2")
        run(outside, vla, "train", "recipes/bridge_mini.yaml", *data)
        readme(outside, python)
    print("the wheel works outside the checkout")  # noqa: T201


def install(folder: Path, constraints: Path) -> Path:
    """Build the wheel and return the Python of a fresh environment that has it."""
    source = folder / "source"  # a copy: a build folder of before must not find its way into the wheel
    for name in ("vla", "client/vla_client"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(folder, *pip, "wheel", "--quiet", "--no-deps", "-w", str(folder / "dist"), str(source))
    (wheel,) = (folder / "dist").glob("vla-*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    run(folder, str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), str(wheel))
    return python


def readme(outside: Path, python: Path) -> None:
    """Run the first block of Python in the README over what the demo left."""
    (outside / "runs").mkdir(exist_ok=True)
    (outside / "runs/mine").symlink_to(outside / "demo_run/flow")
    (outside / "my_dataset").symlink_to(outside / "demo_run/demonstrations")
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    robot, network = block.split("network = vla.AutoPolicy", maxsplit=1)
    script = outside / "readme.py"
    script.write_text(
        f"{BEFORE_README}{robot}{BEFORE_NETWORK}network = vla.AutoPolicy{network}{AFTER_README}"
    )
    run(outside, str(python), str(script))


def run(folder: Path, *command: str) -> None:
    """Run a command in a folder, with nothing of the checkout in its way; say which one failed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=folder, env=env | {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}, check=False
    )
    if done.returncode:
        sys.exit(f"the wheel fails: {' '.join(command)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
