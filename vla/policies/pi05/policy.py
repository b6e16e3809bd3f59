"""pi-0.5 as a policy: its config and its network, on what the family shares."""

from collections.abc import Sequence

import torch

from vla.nn.attention import KeyValueCache
from vla.objectives.solvers import Velocity
from vla.policies.flow.policy import FlowPolicy
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.fast import Pi05Suffix
from vla.policies.pi05.model import Pi05Model


class Pi05Policy(FlowPolicy):
    """pi-0.5 (arXiv 2504.16054) on `transformers`' `PreTrainedModel`."""

    config_class = Pi05Config
    config: Pi05Config
    normalization = {"state": "quantile", "actions": "quantile"}  # noqa: RUF012
    fast_suffix = Pi05Suffix
    _no_split_modules = ["GemmaLayer", "AdaptiveGemmaLayer", "SiglipEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: Pi05Config) -> None:
        super().__init__(config)
        self.model = Pi05Model(config)
        self.post_init()

    def velocity_field(self, cache: KeyValueCache, times: Sequence[float]) -> Velocity:
        """Return `velocity(x, tau)` with the modulations of all `times` made in one go."""
        device = cache.next_position_b.device
        times_n = torch.tensor(times, dtype=torch.float64).to(device, non_blocking=True)
        modulations = self.model.modulations(times_n)
        made = {tau: modulations.at(index) for index, tau in enumerate(times)}

        def velocity(x: torch.Tensor, tau: float) -> torch.Tensor:
            tau_b = torch.full(x.shape[:1], tau, dtype=torch.float64, device=x.device)
            return self.model.velocity(x, tau_b, cache, made.get(tau))  # a solver may also stop in between

        return velocity
