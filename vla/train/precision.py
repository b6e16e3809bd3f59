"""What is computed in which precision, and why trained weights stay float32.

Training keeps three things in float32: the weights that it trains, their gradients, and AdamW's moments. The
forward pass runs under autocast: with `train.precision: bf16` its matrix products, and what lies between
them, are bfloat16, except for the islands that ask for float32 themselves (norms, rotary angles, time,
losses).

bfloat16 has 8 significant bits: next to a weight w its numbers lie at least |w| / 2^8 apart, and an addition
is rounded to the nearest. So an update smaller than |w| / 2^9 changes nothing, however often it is repeated,
and AdamW's are about as large as the learning rate: 2.5e-5 for a weight of 0.05 is four times too small.
Weights of fewer bits are therefore not trained here. The frozen base of an adapter gets no update, and is
bfloat16.
"""

import torch
from torch import nn

from vla.errors import ConfigError
from vla.train.recipe import TrainSection
from vla.weights.dtypes import rounded_weights


def set_matmul_precision(train: TrainSection) -> None:
    """Let float32 matrix products round their factors to TF32 on a CUDA device, or not; nothing elsewhere.

    CPUs are left alone: some of theirs would go down to bfloat16 for the same setting.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if train.tf32 else "highest")


def check_trained_weights(model: nn.Module) -> None:
    """Raise `ConfigError` unless every trainable parameter is float32; frozen ones may be anything."""
    rounded = [(name, p.dtype) for name, p in model.named_parameters() if p.requires_grad]
    rounded = [(name, dtype) for name, dtype in rounded if dtype != torch.float32]
    if rounded:
        name, dtype = rounded[0]
        raise ConfigError(rounded_weights(name, dtype, len(rounded), "train.precision=bf16"))
