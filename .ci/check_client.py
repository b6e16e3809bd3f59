"""Build vla-client's wheel, install it in a fresh environment with nothing else, and run its tests there.

    python .ci/check_client.py [--python PYTHON] [--lowest]

The interpreter is a Python 3.9 where one is found, which is the oldest that the client promises; else this
one, and the output says so. With --lowest, numpy, websockets and msgpack are the oldest versions that
pyproject.toml admits (there are wheels of them all for 3.9).
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "client"


def main() -> None:
    """Build, install and test; the first command that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", help="the interpreter of the environment")
    parser.add_argument("--lowest", action="store_true", help="the oldest versions of what the client needs")
    options = parser.parse_args()
    python = options.python or oldest_python()
    say(f"vla-client is tested with {python} ({version(python)})")
    with tempfile.TemporaryDirectory(prefix="vla-client-") as name:
        folder = Path(name)
        source = folder / "source"
        shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        dist = folder / "dist"
        run(folder, sys.executable, *PIP, "wheel", "--quiet", "--no-deps", "-w", str(dist), str(source))
        (wheel,) = dist.glob("vla_client-*.whl")
        run(folder, python, "-m", "venv", str(folder / "env"))
        inside = str(folder / "env/bin/python")
        needs = lowest() if options.lowest else []
        run(folder, inside, *PIP, "install", "--quiet", "pytest", str(wheel), *needs)
        tests = folder / "tests"
        shutil.copytree(CLIENT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
        (tests / "pytest.ini").write_text(
            "[pytest]\naddopts = -q -rs\nmarkers = slow: takes longer\n", encoding="utf-8"
        )
        run(tests, inside, "-m", "pytest", "-p", "no:cacheprovider")


PIP = ("-m", "pip", "--disable-pip-version-check")


def oldest_python() -> str:
    """Return a Python 3.9 from the path or from pyenv; this interpreter where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which("python3.9"), *sorted(glob.glob(str(pyenv / "versions/3.9.*/bin/python")))]
    for python in found:
        if python and version(python) == "3.9":
            return python
    say("no Python 3.9 is found: the client's oldest Python is not tested")
    return sys.executable


def version(python: str) -> str:
    """Return "3.9"; an empty text for what does not run, such as a shim of pyenv with no version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def lowest() -> list[str]:
    """Return `numpy==1.22.*` and so on: the lower bounds of pyproject.toml."""
    line = re.search(
        r"^dependencies = \[(.*)\]$", (CLIENT / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    assert line, "pyproject.toml names the dependencies in one line"
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)"', line[1])
    assert len(bounds) == len(line[1].split(",")), "every dependency has a lower bound"
    return [f"{name}=={bound}.*" for name, bound in bounds]


def run(folder: Path, *command: str) -> None:
    """Run a command in a folder, with nothing of the checkout in its way; say which one failed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=env, check=False)
    if done.returncode:
        sys.exit(f"vla-client fails: {' '.join(command)} ended with {done.returncode}")


def say(line: str) -> None:
    """Print a line before what the commands print."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
