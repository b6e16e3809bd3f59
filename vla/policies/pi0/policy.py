"""pi-0 as a policy: its config and its network, on what the family shares."""

from vla.policies.flow.policy import FlowPolicy
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.fast import Pi0Suffix
from vla.policies.pi0.model import Pi0Model


class Pi0Policy(FlowPolicy):
    """pi-0 (arXiv 2410.24164) on `transformers`' `PreTrainedModel`."""

    config_class = Pi0Config
    config: Pi0Config
    normalization = {"state": "zscore", "actions": "zscore"}  # noqa: RUF012
    fast_suffix = Pi0Suffix
    _no_split_modules = ["GemmaLayer", "SiglipEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: Pi0Config) -> None:
        super().__init__(config)
        self.model = Pi0Model(config)
        self.post_init()
