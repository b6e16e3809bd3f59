"""What is followed without values, against sums by hand."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from vla.bench.live_bytes import Gathering, call_bytes, step_bytes
from vla.bench.on_gpu import OnGpu

ROWS, WIDTH, WIDE = 8, 32, 512


class Net(nn.Module):
    """Two linear layers, or one matrix there and back."""

    def __init__(self, tied=False):
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDE, bias=False)
        self.down = nn.Linear(WIDE, WIDTH, bias=False)
        if tied:
            self.down.weight = self.up.weight
        self.tied = tied

    def forward(self, x):
        hidden = self.up(x)
        back = F.linear(hidden, self.up.weight.mT) if self.tied else self.down(hidden)
        return SimpleNamespace(loss=back.sum())


def run(tied=False, autocast=False, **gathering):
    with torch.device("meta"):
        net, x = Net(tied), torch.empty(ROWS, WIDTH)
    return step_bytes(net, {"x": x}, OnGpu(autocast), Gathering(**gathering))


MATRIX, HIDDEN = 4 * WIDTH * WIDE, 4 * ROWS * WIDE


def test_between_the_passes_lies_what_the_backward_pass_needs():
    assert run().between == HIDDEN + 4  # and the loss; the input was there before
    # Autocast keeps copies of the input and of the matrix that a gradient passes, all in bfloat16.
    assert run(autocast=True).between == MATRIX / 2 + HIDDEN / 2 + 2 * ROWS * WIDTH + 2


def test_gradients_come_while_activations_go():
    held = run()
    assert set(held.trained) == {"up.weight", "down.weight"}
    # Both matrices' gradients, and that of what lies between them.
    assert 2 * MATRIX + HIDDEN <= held.peak < 2 * MATRIX + 2 * HIDDEN


def test_two_gradients_of_one_matrix_are_added_in_place():
    held = run(tied=True)
    assert 2 * MATRIX <= held.peak < 2.5 * MATRIX


def test_shared_gradients_leave_and_gathered_weights_come():
    plain, shared = run(), run(gradient_share=0.0)
    assert plain.peak - MATRIX <= shared.peak < plain.peak
    names = {"up.weight": "up", "down.weight": "down"}
    gathered = run(gradient_share=0.0, layers=names, weights={"up": 1e9, "down": 2e9})
    assert 2e9 < gathered.peak < 2e9 + plain.peak


def test_a_call_without_gradients_holds_what_it_works_on():
    with torch.device("meta"):
        net, x = Net(), torch.empty(ROWS, WIDTH)
    held = call_bytes(net, lambda: net(x), {"x": x}, OnGpu(autocast=False))
    assert held == HIDDEN + 4 * ROWS * WIDTH + 4  # hidden, result, its sum


def saved(call):
    found = []
    with OnGpu(autocast=False), saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        call()
    return sum(tensor.nbytes for tensor in found)


def test_fused_kernels_keep_no_scores_and_no_pieces():
    q = torch.empty(2, 8, 16, 32, device="meta", requires_grad=True)
    k = torch.empty(2, 1, 24, 32, device="meta", requires_grad=True)
    kept = q.nbytes * 2 + k.nbytes * 2 + 4 * 2 * 8 * 16  # queries, result; keys, values; a number per query
    assert saved(lambda: F.scaled_dot_product_attention(q, k, k, enable_gqa=True)) == kept
    mask = torch.empty(2, 1, 16, 24, dtype=torch.bool, device="meta")
    masked = saved(lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True))
    assert masked == kept + 4 * mask.numel()
    gain = torch.empty(32, device="meta", requires_grad=True)
    assert saved(lambda: F.rms_norm(q, (32,), gain)) == q.nbytes + gain.nbytes + 4 * 2 * 8 * 16


def test_autocast_is_that_of_pytorch():
    """By dtypes, against `torch.autocast`, on functions that CPUs and GPUs treat alike."""
    calls = {
        "linear": lambda x: F.linear(x, x),
        "product": lambda x: x @ x,
        "convolution": lambda x: F.conv1d(x[None], x[..., None]),
        "sum": lambda x: x.sum(),
        "added": lambda x: F.linear(x, x) + x,
        "gelu": lambda x: F.gelu(F.linear(x, x)),
        "loss": lambda x: F.mse_loss(F.linear(x, x), x),
    }
    for name, call in calls.items():
        with torch.autocast("cpu", torch.bfloat16):
            real = call(torch.ones(4, 4))
        with OnGpu(autocast=True):
            made = call(torch.ones(4, 4, device="meta"))
        assert (made.dtype, made.shape) == (real.dtype, real.shape), name
