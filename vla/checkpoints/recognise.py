"""Recognise the policy and the format of a checkpoint folder by its tensors, never by its name."""

from typing import Any, NamedTuple

from vla.checkpoints.own import OWN, PREFIX, OwnFiles, claimed_by_us
from vla.errors import ConfigError, WeightsError, did_you_mean
from vla.policies.registry import policy_entry, policy_module, policy_names
from vla.weights.formats import Format, Names, Stored, format_names
from vla.weights.keymap import KeyTable, respell
from vla.weights.paligemma import PALIGEMMA_RULES, PALIGEMMA_SPELLINGS


class _Candidate(NamedTuple):
    policy: str
    format: Format
    names: Names


def weights_module(policy: str) -> Any:
    """Return `FORMATS`, `read_config` and `write_config` of a policy: of its `weights.py`, if it has one."""
    return policy_module(policy, "weights") or OwnFiles(policy_entry(policy).config)


def format_of(policy: str, name: str) -> Format:
    """Return one of a policy's formats.

    Raises:
        ConfigError: The policy does not have it.
    """
    formats: tuple[Format, ...] = weights_module(policy).FORMATS
    names = format_names(formats)
    if name not in names:
        written = [one.name for one in formats if one.written is not None]
        raise ConfigError(
            f"There is no format '{name}' for {policy}, only {', '.join(written)}."
            f"{did_you_mean(name, written)}"
        )
    return formats[names.index(name)]


def recognise(stored: Stored) -> tuple[str, Format]:
    """Return the policy's name and the format of a checkpoint.

    The policy and the family of names are those that leave the fewest tensors unknown; the folder's
    other files distinguish formats with the same names.

    Raises:
        WeightsError: A config of ours that names an unknown policy, a PaliGemma without an expert, tensors of
            no policy here or of several, or a config that names another policy than the tensors do.
    """
    declared = _declared(stored)
    if declared is not None and policy_module(declared, "weights") is None:
        return declared, OWN
    candidates = _candidates(stored)
    best = min(
        candidates,
        key=lambda one: (len(one.names.unknown), not one.format.claims(stored), -len(one.names.found)),
    )
    _refuse_strangers(stored, best)
    _refuse_mixture(stored, best, candidates)
    _refuse_other_config(stored, best)
    if not best.format.claims(stored):
        found = "its config.json is missing"
        if stored.config:
            said = {key: stored.config[key] for key in ("model_type", "type") if key in stored.config}
            kind = " and ".join(f"{key} {value!r}" for key, value in said.items()) or "no model_type"
            found = f"its config.json has {kind} and is not of that format"
        raise WeightsError(
            f"The tensors in {stored.folder} have the names of the format '{best.format.name}', but {found}."
        )
    return best.policy, best.format


def _declared(stored: Stored) -> str | None:
    """Return the policy that a config of ours names; None where the config is not one of ours."""
    if not claimed_by_us(stored):
        return None
    name, known = stored.config["model_type"].removeprefix(PREFIX), policy_names()
    if name not in known:
        raise WeightsError(
            f"{stored.folder / 'config.json'} is of the policy '{name}', which is not known here; known are "
            f"{', '.join(known)}.{did_you_mean(name, known)} A policy of another package is known once that "
            "is installed, or imported and registered (vla.policies.registry.register)."
        )
    return name


def _policy_names() -> list[str]:
    return [name for name in policy_names() if policy_module(name, "weights") is not None]


def _candidates(stored: Stored) -> list[_Candidate]:
    return [
        _Candidate(policy, format, format.read_names(stored.reader.infos))
        for policy in _policy_names()
        for format in weights_module(policy).FORMATS
    ]


def _refuse_strangers(stored: Stored, best: _Candidate) -> None:
    """Raise where most tensors are unknown, or where there is no expert."""
    stored_names = list(stored.reader.infos)
    has_expert = any(name.startswith("model.expert.") for name in best.names.found)
    if not has_expert and is_paligemma(stored_names):
        raise WeightsError(
            f"{stored.folder} holds a PaliGemma without an action expert, so it is not a policy. It can be "
            "the start of one: vla.Pi0Policy.from_paligemma, or policy.paligemma in a recipe, puts a fresh "
            "expert next to it, to be trained."
        )
    if len(best.names.unknown) * 2 >= len(stored_names):
        raise WeightsError(
            f"{stored.folder} is not a checkpoint of a policy known here: {len(best.names.unknown)} of "
            f"{len(stored_names)} tensors have names that belong to none, such as "
            f"{', '.join(best.names.unknown[:3])}."
        )


def is_paligemma(names: list[str]) -> bool:
    """Whether most names are those of a PaliGemma's tensors."""
    table = KeyTable(PALIGEMMA_RULES)
    known = sum(bool(table.of_theirs(respell(name, PALIGEMMA_SPELLINGS))) for name in names)
    return known * 2 > len(names)


def _refuse_mixture(stored: Stored, best: _Candidate, candidates: list[_Candidate]) -> None:
    """Raise where tensors that the policy does not have are another's."""
    for other in candidates:
        if other.policy == best.policy or other.format.name != best.format.name:
            continue
        theirs = sorted(set(best.names.unknown) - set(other.names.unknown))
        if theirs:
            more = f" and {len(theirs) - 3} more" if len(theirs) > 3 else ""
            raise WeightsError(
                f"{stored.folder} mixes two policies: most of its tensors are {best.policy}'s, but "
                f"{', '.join(theirs[:3])}{more} belong to {other.policy}. Nothing was loaded."
            )


def _refuse_other_config(stored: Stored, best: _Candidate) -> None:
    declared = str(stored.config.get("type") or stored.config.get("model_type") or "").removeprefix("vla_")
    if declared in _policy_names() and declared != best.policy:
        raise WeightsError(
            f"{stored.folder / 'config.json'} says '{declared}', but the tensors are {best.policy}'s. One of "
            "the two was taken from another checkpoint."
        )
