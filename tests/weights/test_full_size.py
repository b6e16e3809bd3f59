"""What loading and converting 3.24 billion parameters takes.

`pytest -m slow tests/weights/test_full_size.py -s` prints the numbers. It writes 6.5 GB, twice, into pytest's
temporary folder (`--basetemp` chooses another one) and takes minutes. On a virtual machine whose host hands
out memory on first touch, that is most of the time of loading, and of the reading that it is held against.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights

from vla import Pi0Config, Pi0Policy
from vla.weights.stream import write_tensors
from vla.weights.tensors import Piece, TensorInfo, TensorReader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc"),
]


class Noise(TensorReader):
    """Stands in for a checkpoint: the shapes of a module, and one block of small numbers over and over."""

    def __init__(self, module, dtype):
        self.folder = Path("noise")
        self.metadata = {}
        self.infos = {name: TensorInfo(tuple(p.shape), dtype) for name, p in module.named_parameters()}
        self.block = (torch.randn(2**20) * 0.02).to(dtype)

    def file_of(self, name):
        return self.folder

    def read_rows(self, name, out, start=0):
        for part in out.reshape(-1).split(len(self.block)):
            part.copy_(self.block[: len(part)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full_size")
    if shutil.disk_usage(folder).free < 16e9:
        pytest.skip("less than 16 GB of disk")
    config = Pi0Config()
    with init_empty_weights(include_buffers=False):
        reader = Noise(Pi0Policy(config), torch.bfloat16)
    items = {name: Piece(name, info) for name, info in reader.infos.items()}
    write_tensors(folder, items, reader, metadata={}, max_shard_bytes=2 * 10**9)
    config.save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


MEASURE = """
import json, re, sys, time
from pathlib import Path

import torch, vla
from vla.checkpoints.convert import convert
from vla.checkpoints.loading import load_policy

what, folder = sys.argv[1], Path(sys.argv[2])
begin = time.perf_counter()
if what == "load":
    policy = vla.AutoPolicy.from_pretrained(folder)
    assert next(policy.parameters()).dtype == torch.bfloat16
elif what == "convert":
    convert(folder, folder.parent / "converted", "lerobot")
elif what == "hold":  # the bytes in memory of their own, which no loader can do without
    held = [path.read_bytes() for path in folder.glob("*.safetensors")]
else:  # the bytes through one small buffer, over and over
    buffer = bytearray(2**26)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
seconds = time.perf_counter() - begin
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"seconds": seconds, "peak": peak}))
"""


def measure(what, folder):
    run = [sys.executable, "-c", MEASURE, what, str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    got = json.loads(done.stdout.splitlines()[-1])
    print(f"{what}: {got['seconds']:.2f} s, peak {got['peak'] / 1e9:.3f} GB")  # noqa: T201
    return got


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_loading(checkpoint):
    size = size_of(checkpoint)
    assert size > 6.4e9
    measure("pass", checkpoint)  # so that the files are in the page cache for all that follows
    measure("hold", checkpoint)  # to hold the time of loading against; time itself is not tested
    peak = measure("load", checkpoint)["peak"]
    assert peak <= 1.15 * size, f"{peak / size:.3f} times the size on disk"


def test_converting(checkpoint):
    got = measure("convert", checkpoint)
    converted = checkpoint.parent / "converted"
    assert size_of(converted) > 6.4e9
    shutil.rmtree(converted)
    assert got["peak"] <= 2e9
