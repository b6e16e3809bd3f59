"""SigLIP without training computes what transformers' does."""

import pytest
import torch

from vla.fast.vision import Vision
from vla.nn.vision import Projector, make_vision_tower


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_those_of_the_tower(fold, dtype):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = make_vision_tower(**sizes, image_size=28, patch_size=14).to(dtype).eval()
    projector, images = Projector(32, 24).to(dtype), torch.rand(3, 3, 28, 28) * 2 - 1
    vision = Vision(tower, projector, fold)
    with torch.no_grad():
        want = projector(tower(images.to(dtype)).last_hidden_state)
        got = vision(images)
    assert got.dtype == dtype
    if fold:
        bound = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(got, want, atol=bound, rtol=0)
    else:
        assert torch.equal(got, want)
