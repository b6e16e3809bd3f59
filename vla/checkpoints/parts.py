"""The parts of a policy in one table: what is frozen, adapted, quantised, counted and measured by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Part:
    """One part of a policy.

    Attributes:
        name: In metrics and choices, "vision".
        title: For people, "vision tower".
        prefixes: How the names of its parameters begin, "model.vision_tower."; the first part that fits a
            name has it.
        within: Name of the part that it is measured with; itself where not given.
    """

    name: str
    title: str
    prefixes: tuple[str, ...]
    within: str | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of a policy, and what may be done to them.

    Attributes:
        parts: In the order in which a name is looked up. The last one should take every name (`("",)`).
        freezable: Choice of `policy.freeze` -> names of the parts that it keeps as they are.
        adapter_presets: Choice of `policy.adapter.preset` -> expression that the full names of the adapted
            linear layers match; the first is the default; empty where no adapter is offered.
        modules_to_save: Full names of modules that are trained whole next to an adapter, those that exist.
        quantizable_linears: Expression that the full names of the linear layers match which a quantised base
            stores in few bits; None where none is offered.
    """

    parts: tuple[Part, ...] = (Part("policy", "policy", ("",)),)
    freezable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    adapter_presets: Mapping[str, str] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    quantizable_linears: str | None = None

    def of(self, parameter: str) -> Part:
        """Return the part that a parameter belongs to, by its full name, wrapped by an engine or not."""
        return next(
            part
            for part in self.parts
            if any(parameter.startswith(one) or f".{one}" in parameter for one in part.prefixes)
        )

    def measured(self, parameter: str) -> str:
        """Return the name of the part that a parameter is measured with."""
        part = self.of(parameter)
        return part.within or part.name

    def frozen_prefixes(self, freeze: str) -> tuple[str, ...]:
        """Return how the names of the parameters begin that a choice of `policy.freeze` keeps as they are.

        Raises:
            ConfigError: There is no such choice; the choices are named.
        """
        if freeze == "none":
            return ()
        if freeze not in self.freezable:
            known = ", ".join(("none", *self.freezable))
            raise ConfigError(
                f"policy.freeze must be one of {known}, got '{freeze}'.{did_you_mean(freeze, self.freezable)}"
            )
        frozen = self.freezable[freeze]
        return tuple(prefix for part in self.parts if part.name in frozen for prefix in part.prefixes)

    @property
    def default_adapter_preset(self) -> str:
        """The preset of an adapter that names none.

        Raises:
            ConfigError: The policy has no presets.
        """
        if not self.adapter_presets:
            raise ConfigError(
                "This policy does not say what an adapter would change: it has no adapter presets. Name the "
                "linear layers with `targets`."
            )
        return next(iter(self.adapter_presets))

    def adapter_targets(self, preset: str | None = None) -> str:
        """Return the expression that the full name of an adapted linear layer matches.

        Args:
            preset: Choice of `policy.adapter.preset`; None: the default.

        Raises:
            ConfigError: There is no such preset; the presets are named.
        """
        preset = self.default_adapter_preset if preset is None else preset
        if preset not in self.adapter_presets:
            known = ", ".join(self.adapter_presets) or "none at all"
            raise ConfigError(
                f"There is no adapter preset '{preset}', only {known}."
                f"{did_you_mean(preset, self.adapter_presets)}"
            )
        return self.adapter_presets[preset]
