"""The model card of a policy: what is needed to use the weights, and no more.

The part that follows from the policy and its training run is written between two markers. `merge_cards`
rewrites what is between the markers and leaves text that was written by hand alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from vla.checkpoints.module import PolicyModule
from vla.errors import ConfigError
from vla.paths import expanded
from vla.plain_yaml import load_yaml
from vla.transforms.base import Pipeline
from vla.types import HUB_ID, IMAGE_PREFIX, STATE_KEY
from vla.weights.known import known_by_id
from vla.weights.run_folder import list_steps

BEGIN = "<!-- vla:begin -->"
END = "<!-- vla:end -->"
_EXPLAINED = "<!-- The next push rewrites what is between these markers, and nothing else. -->"

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
_TELLING = ("loss", "error", "ratio", "success")  # parts of the names of metrics that belong on a card


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where weights come from; empty fields are left out of the card.

    Attributes:
        base_model: Hub id or short name of the weights that training began with.
        datasets: Hub ids, or else names, of what it was trained on.
        recipe: The recipe's YAML.
        metrics: Last metrics of the run, by name.
        license: Identifier as on the hub; that of a known base model where not given.
    """

    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    recipe: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    license: str | None = None


def read_origin(folder: Path | str) -> Origin:
    """Read the origin from a training run, or from one of its checkpoints.

    Args:
        folder: Holds `recipe.yaml`, and `metrics.jsonl` in it or, for a checkpoint, in the run above it.

    Raises:
        ConfigError: There is no recipe, or a file is not what it should be.
    """
    folder = expanded(folder)
    if folder.is_dir() and not (folder / RECIPE_FILE).is_file():
        folder = next(reversed(list_steps(folder)), folder)
    recipe = folder / RECIPE_FILE
    try:
        text = recipe.read_text(encoding="utf-8")
        values = load_yaml(text)
        policy, data = values.get("policy") or {}, values["data"]
        base = policy.get("pretrained")
        datasets = tuple(str(one["path"]) for one in data.get("mixture") or (data,))
    except OSError as error:
        raise ConfigError(
            f"{folder} is not a training run: {RECIPE_FILE} cannot be read ({error})."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{recipe} is not a recipe: {type(error).__name__}: {error}.") from error
    nearby = (folder / METRICS_FILE, folder.resolve().parent.parent / METRICS_FILE)
    metrics = next((_last_numbers(path) for path in nearby if path.is_file()), {})
    return Origin(base_model=base, datasets=datasets, recipe=text, metrics=metrics)


def model_card(policy: PolicyModule, repo_id: str | None = None, origin: Origin | None = None) -> ModelCard:
    """Return the card of a policy.

    Args:
        policy: The policy, with its pipeline if it has one.
        repo_id: Its repository; "owner/name" stands in the example where not given.
        origin: Where the weights come from.
    """
    origin = origin or Origin()
    base = origin.base_model if origin.base_model and HUB_ID.fullmatch(origin.base_model) else None
    known = known_by_id(base) if base else None
    data = ModelCardData(
        license=origin.license or (known.license if known else None),
        base_model=base,
        datasets=[name for name in origin.datasets if HUB_ID.fullmatch(name)] or None,
        library_name="vla",
        pipeline_tag="robotics",
        tags=["robotics", "vision-language-action", _family(policy)],
    )
    title = (repo_id or "owner/name").rpartition("/")[2]
    sections = [
        _use(policy, repo_id or "owner/name"),
        _dimensions(policy),
        *(_statistics(pipeline, name) for name, pipeline in policy.pipelines.items()),
        _training(origin),
        _license(data.license, base),
    ]
    text = "\n\n".join([f"# {title}", f"{BEGIN}\n{_EXPLAINED}", *filter(None, sections), END])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def merge_cards(existing: str | None, card: ModelCard) -> str | None:
    """Return the README to write, or None where the existing one was written by hand and stays.

    Args:
        existing: The present README, if any.
        card: The card of the weights to be written.

    Returns:
        The card itself where there is none, or one without text; the existing one with the part between the
        markers renewed and the card's facts in its metadata where it has the markers; None where it has not,
        or where its metadata cannot be read.
    """
    if existing is None:
        return str(card)
    try:
        there = ModelCard(existing)
    except (ValueError, TypeError, yaml.YAMLError):
        return None
    before, begins, rest = there.text.partition(BEGIN)
    _, ends, after = rest.partition(END)
    is_marked = bool(begins and ends)
    if there.text.strip() and not is_marked:
        return None
    theirs, ours = there.data.to_dict(), card.data.to_dict()
    merged = {**theirs, **ours, "tags": list(dict.fromkeys([*theirs.get("tags", []), *ours["tags"]]))}
    header = f"---\n{ModelCardData(**merged).to_yaml()}\n---\n"
    if not is_marked:
        return f"{header}\n{card.text.lstrip()}"
    renewed = card.text[card.text.index(BEGIN) : card.text.index(END) + len(END)]
    return f"{header}{before}{renewed}{after}"


def license_of(existing: str | None) -> str | None:
    """Return the licence that a README's metadata states, if it can be read and states one."""
    if existing is None:
        return None
    try:
        return ModelCard(existing).data.to_dict().get("license")
    except (ValueError, TypeError, yaml.YAMLError):
        return None


def _last_numbers(path: Path) -> dict[str, float]:
    """Return the last value of every metric of a run that belongs on a card."""
    found: dict[str, float] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a killed run leaves an unfinished line
                record = json.loads(line)
                step = record.get("step")
                found |= {
                    name: value for name, value in record.items() if any(part in name for part in _TELLING)
                }
                found |= {"step": step} if step is not None else {}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ConfigError(f"{path} does not hold metrics: {error}.") from error
    return {"step": found.pop("step"), **found} if "step" in found else found


def _family(policy: PolicyModule) -> str:
    return str(policy.config.model_type).removeprefix("vla_")


def _use(policy: PolicyModule, repo_id: str) -> str:
    if not policy.pipelines:
        return (
            f"Weights of a {_family(policy)} policy, without statistics of any robot: a start for training, "
            "which does not act as it is.\n\n"
            f'```python\nimport vla\n\nnetwork = vla.AutoPolicy.from_pretrained("{repo_id}")\n```\n\n'
            f"`vla train RECIPE policy.pretrained={repo_id}` fine-tunes it on a robot's demonstrations."
        )
    keys = {f"{IMAGE_PREFIX}{name}": name for name in policy.config.cameras}
    keys[STATE_KEY] = "state"
    if getattr(policy, "reads_text", True):  # declared by `Policy`, which stands above this room
        keys["task"] = '"what to do"'
    observation = "".join(f'    "{key}": {value},\n' for key, value in keys.items())
    whose, chosen = "with its pipeline", ""
    if names := policy.pipeline_names:
        whose = f"for several robots, each with its own pipeline ({', '.join(names)})"
        chosen = f', pipeline="{names[0]}"'
    images, absent = "The state", ""
    if policy.config.cameras:
        images = "Images are uint8 `[h, w, 3]`, the state"
        absent = " A camera that the robot does not have is left out."
    return (
        f"A {_family(policy)} policy {whose}: observations and actions in the robot's units.\n\n"
        f'```python\nimport vla\n\npolicy = vla.load("{repo_id}"{chosen})\n'
        f'actions = policy.infer({{\n{observation}}})["actions"]\n```\n\n'
        f"{images} is `[d]`, the actions are `[steps, d]`.{absent}"
    )


def _dimensions(policy: PolicyModule) -> str:
    rows = {
        "parameters": f"{sum(p.numel() for p in policy.parameters()):,}",
        "stored as": str(policy.dtype).removeprefix("torch."),
    }
    if policy.config.cameras:
        rows["cameras"] = ", ".join(policy.config.cameras)
    rows |= policy.config.summary()
    return "## Dimensions\n\n" + _table(("", ""), list(rows.items()))


def _statistics(pipeline: Pipeline, name: str | None) -> str:
    """Describe the statistics by which states and actions are normalised, whatever the normalising step."""
    of_whom = "" if name is None else f" of {name}"
    steps = " -> ".join(transform.name for transform in pipeline.transforms)
    text = f"## Statistics{of_whom}\n\nPipeline, from the robot to the network: {steps}.\n\n"
    for transform in pipeline.transforms:
        statistics = getattr(transform, "statistics", None)
        if statistics is None:
            continue
        modes: Mapping[str, str] = getattr(transform, "modes", {})
        rows = [
            (
                name,
                modes.get(name, "none"),
                str(values.width),
                f"{values.count:,}" if values.count else "unknown",
            )
            for name, values in statistics.features.items()
        ]
        text += _table(("feature", "normalised by", "dimensions", "values counted"), rows) + "\n\n"
        text += f"Counted: {statistics.convention or 'not recorded'}. "
        text += f"From: {statistics.source or 'not recorded'}."
    return text.rstrip()


def _training(origin: Origin) -> str:
    facts = [("base model", origin.base_model), *(("dataset", name) for name in origin.datasets)]
    lines = [f"- {name}: `{value}`" for name, value in facts if value]
    text = "\n".join(lines)
    if origin.metrics:
        rows = [(name.replace("_", " "), f"{value:.6g}") for name, value in origin.metrics.items()]
        text += "\n\n" + _table(("at the end", ""), rows)
    if origin.recipe:
        recipe = origin.recipe.strip("\n")
        text += f"\n\n<details><summary>recipe</summary>\n\n```yaml\n{recipe}\n```\n\n</details>"
    return f"## Training\n\n{text.strip()}" if text else ""


def _license(license: str | None, base: str | None) -> str:
    if license is not None:
        return f"## Licence\n\n{license}."
    behind = f" Those of the base model, {base}, apply." if base else ""
    return f"## Licence\n\nNot stated. Weights carry the terms of those who trained them.{behind}"


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
