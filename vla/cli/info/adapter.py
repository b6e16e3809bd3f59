"""`vla info ADAPTER`: what an adapter changes, of which base, and the robot that it is for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from vla.adapters.files import read_base, read_config
from vla.cli.console import print_rows
from vla.cli.info.checkpoint import inspect, read_our_pipeline
from vla.cli.info.text import CheckpointInfo, conventions
from vla.cli.logs import print_json
from vla.errors import ConfigError, StatisticsError, WeightsError
from vla.weights.files.safetensors import SafetensorsReader
from vla.weights.formats import ADAPTER_FILES, BASE_FILE
from vla.weights.source import local_folder

*_, WEIGHTS_FILE = ADAPTER_FILES
_SHOWN = 4


@dataclass
class AdapterInfo:
    """What the files of an adapter say.

    Attributes:
        rank: Rank of the update.
        alpha: The update is scaled by `alpha / rank`.
        dropout: Dropout on the update's input, in training.
        kind: "LoRA", with what is particular about it.
        targets: What is adapted, as the adapter's config has it: an expression, or names.
        layers: Full names of the layers with an update.
        whole: Names of the modules that were trained whole.
        parameters: Number of stored values.
        dtypes: Dtypes of them.
        bytes: Size of the file.
        base: Hub id or path of its base.
        revision: Commit of the base on the hub.
        fingerprint: Fingerprint that the base had in training.
        quantize: In how many bits the base was stored in training.
        base_found: Where the base lies on this machine; None where it was not found.
        base_problem: Why not.
        policy: Name of the base's policy, where the base was found.
        robot: The pipeline, as of every checkpoint.
    """

    rank: Any = None
    alpha: Any = None
    dropout: Any = None
    kind: str = "LoRA"
    targets: Any = None
    layers: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    parameters: int = 0
    dtypes: list[str] = field(default_factory=list)
    bytes: int = 0
    base: str = ""
    revision: str | None = None
    fingerprint: str = ""
    quantize: str | None = None
    base_found: str | None = None
    base_problem: str | None = None
    policy: str | None = None
    robot: CheckpointInfo = field(default_factory=CheckpointInfo)

    def to_json(self) -> dict[str, Any]:
        """Return everything, of the robot what the pipeline says."""
        said = {name: getattr(self.robot, name) for name in ("pipeline", "statistics", "robots")}
        return {name: value for name, value in vars(self).items() if name != "robot"} | said


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter that was trained here."""
    return (folder / BASE_FILE).is_file()


def print_adapter(
    what: str, folder: Path, base: str | None = None, token: str | None = None, as_json: bool = False
) -> None:
    """Describe an adapter.

    Args:
        what: What the user calls it.
        folder: Where it lies.
        base: Where its base lies, if no longer where it says.
        token: Hub token.
        as_json: Print JSON instead of a table.

    Raises:
        WeightsError: A file of it is damaged.
        ConfigError: Its pipeline is damaged.
    """
    found = inspect_adapter(folder, base, token)
    if as_json:
        print_json({"kind": "adapter", "path": what, **found.to_json()})
    else:
        print_rows(f"adapter {what}", in_words(found))


def inspect_adapter(folder: Path, base: str | None = None, token: str | None = None) -> AdapterInfo:
    """Look at an adapter's headers and small files; see `print_adapter`."""
    found = AdapterInfo()
    said = read_base(folder)
    found.base, found.revision = said["name"], said["revision"]
    found.fingerprint, found.quantize = said["fingerprint"], said.get("quantize")
    _take_config(found, read_config(folder))
    _take_tensors(found, folder)
    _find_base(found, base, token)
    read_our_pipeline(found.robot, folder)
    return found


def _take_config(found: AdapterInfo, values: Mapping[str, Any]) -> None:
    found.rank, found.alpha = values.get("r"), values.get("lora_alpha")
    found.dropout, found.targets = values.get("lora_dropout"), values.get("target_modules")
    found.whole = list(values.get("modules_to_save") or ())
    particular = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}
    found.kind = " and ".join([name for key, name in particular.items() if values.get(key)]) or str(
        values.get("peft_type", "LoRA")
    ).replace("LORA", "LoRA")


def _take_tensors(found: AdapterInfo, folder: Path) -> None:
    with SafetensorsReader(folder, [WEIGHTS_FILE]) as reader:
        infos = reader.infos
    found.parameters = sum(prod(info.shape) for info in infos.values())
    found.dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in infos.values()})
    found.bytes = (folder / WEIGHTS_FILE).stat().st_size
    found.layers = sorted(
        {
            name.partition(".lora_A")[0].removeprefix("base_model.model.")
            for name in infos
            if ".lora_A" in name
        }
    )


def _find_base(found: AdapterInfo, base: str | None, token: str | None) -> None:
    """Say where the base lies, without downloading it."""
    name = found.base if base is None else base
    try:
        folder = local_folder(name, found.revision if base is None else None, token, local_files_only=True)
        whole = inspect(folder)
    except (WeightsError, ConfigError, StatisticsError) as error:
        found.base_problem = str(error)
        return
    found.base_found, found.policy = str(folder), whole.policy
    if whole.problem is not None:
        found.base_problem = whole.problem


def in_words(found: AdapterInfo) -> dict[str, str]:
    """Return names and values for people."""
    rows = {"adapter": found.kind, "policy": found.policy or "as its base"}
    rows |= {"rank": str(found.rank), "alpha": str(found.alpha), "dropout": str(found.dropout)}
    names = found.layers
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    rows["adapts"] = f"{len(names)} linear layers: {', '.join(names[:_SHOWN])}{more}" if names else "nothing"
    targets = found.targets if isinstance(found.targets, str) else ", ".join(found.targets or ())
    rows["targets"] = targets or "not recorded"
    if found.whole:
        rows["trained whole"] = ", ".join(found.whole)
    rows["parameters"] = f"{found.parameters:,}"
    rows["weights"] = f"{', '.join(found.dtypes) or 'none'}; {found.bytes / 1e6:,.1f} MB"
    at = f" at {found.revision}" if found.revision else ""
    rows["base"] = f"{found.base}{at}"
    rows["base's fingerprint"] = found.fingerprint
    if found.quantize is not None:
        rows["base in training"] = found.quantize
    if found.base_found is not None:
        rows["base found"] = f"in {found.base_found}"
    if found.base_problem is not None:
        rows["base found" if found.base_found is None else "base does not load"] = (
            f"no: {found.base_problem} Give it with --base WHERE."
            if found.base_found is None
            else found.base_problem
        )
    return rows | conventions(found.robot)
