"""`transformers`' own PI0 with a policy's weights, to compare with (`vla bench --against transformers`)."""

from typing import Any

import torch
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.initialization import no_init_weights

from vla.errors import ConfigError
from vla.policies.flow.config_write import transformers_fields
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.pi0.weights import to_transformers
from vla.types import Batch


class TransformersReference:
    """The same function by `transformers`; its weights are the policy's own tensors, not copies.

    The policy's `numerics` are set to "transformers": the two round time differently by default.
    """

    def __init__(self, policy: Pi0Policy) -> None:
        if policy.config.action_objective != "flow" or policy.config.solver != "euler":
            raise ConfigError("transformers' PI0 knows the objective 'flow' and the solver 'euler' only.")
        policy.config.numerics = "transformers"
        self.config = policy.config
        with no_init_weights():
            model = PI0ForConditionalGeneration._from_config(
                transformers_config(policy.config), dtype=policy.dtype
            )
        shared = {to_transformers(name): tensor for name, tensor in policy.state_dict().items()}
        report = model.load_state_dict(shared, strict=False, assign=True)
        unused = {"model.dit.embed_tokens.weight"}
        assert not report.unexpected_keys, report
        assert set(report.missing_keys) <= unused, report
        self.model: Any = model.eval()
        self.model.to(policy.device)

    def sample_actions(self, observation: Batch, noise: torch.Tensor) -> torch.Tensor:
        """Return a chunk `[b, a, m]` for the input of our `sample_actions`."""
        dtype = self.model.dtype
        return self.model.sample_actions(
            state=observation["state"].to(dtype),
            noise=noise.to(dtype),
            num_steps=self.config.num_inference_steps,
            **self._prefix(observation),
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the velocity for the input of our `forward`."""
        dtype = self.model.dtype
        named = {name: batch[name].to(dtype) for name in ("state", "noise", "actions")}
        return self.model(**named, timestep=1 - batch["tau"], **self._prefix(batch)).loss

    def _prefix(self, batch: Batch) -> Batch:
        """Write image tokens into the ids; an absent camera has none, so rows are padded on the right."""
        rows = []
        for ids, mask, cameras in zip(
            batch["input_ids"], batch["attention_mask"], batch["pixel_mask"], strict=True
        ):
            image_tokens = ids.new_full(
                (self.config.tokens_per_image * int(cameras.sum()),), self.config.vocab_size
            )
            rows.append(torch.cat([image_tokens, ids[mask.bool()]]))
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(rows, batch_first=True),
            "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
            "pixel_values": batch["pixel_values"].to(self.model.dtype),
            "pixel_attention_mask": batch["pixel_mask"],
        }


def transformers_config(config: Pi0Config) -> PI0Config:
    """Return the config of `transformers`' PI0 with a policy's sizes."""
    return PI0Config(**transformers_fields(config))
