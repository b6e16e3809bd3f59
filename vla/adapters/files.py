"""Adapters on disk: a folder of megabytes that names its base.

    adapter_config.json          peft's format, so that peft can read the folder
    adapter_model.safetensors    the LoRA matrices, and the modules that were trained whole
    adapter_base.json            the base: hub id or path, commit, fingerprint, and
                                 in how many bits it was stored in training
    pipeline.json, ...           statistics, transforms and tokenizer, as in every policy's folder

An adapter fits one base only, so the base's fingerprint is compared whenever an adapter is loaded.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vla.adapters.lora import (
    DEFAULT_NAME,
    cast_trained,
    fingerprint,
    fold_in,
    import_peft,
    inject,
    remove_adapter,
)
from vla.adapters.quantize import load_quantized
from vla.atomic import atomic_folder, atomic_write, read_json
from vla.checkpoints.module import LoadedFrom, PolicyModule
from vla.checkpoints.replace import check_replaceable, refuse_run
from vla.checkpoints.savable import check_finite, check_same_names, check_tensors
from vla.errors import StatisticsError, VlaError, WeightsError, misread, remedy
from vla.paths import expanded
from vla.transforms.named_pipelines import read_pipelines
from vla.types import default_device_cpu
from vla.weights.dtypes import as_dtype
from vla.weights.finite import refuse_not_finite
from vla.weights.formats import ADAPTER_FILES, BASE_FILE
from vla.weights.run_folder import ADAPTERS_FILE, CHECKPOINTS_FOLDER, holds_checkpoint
from vla.weights.source import local_folder

logger = logging.getLogger(__name__)

_, CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILES

_BASE_FIELDS: dict[str, Any] = {
    "name": str,
    "revision": str | None,
    "config": dict,
    "asset_id": str | None,
    "fingerprint": str,
    "quantize": str | None,
}
"""What `adapter_base.json` holds."""

_PREFIX = "base_model.model."
"""What `peft` puts before every name in its files."""


def check_saving(policy: PolicyModule, folder: Path) -> None:
    """Raise what saving a policy into a folder would, as far as it is known before it is trained.

    Raises:
        SaveError: The folder is a checkpoint that must not be replaced, or a file.
        WeightsError: There is nothing that a checkpoint could hold: see `Policy.save_pretrained`.
    """
    check_storable(policy)
    if policy.adapter is not None:
        base_of(policy)
    check_replaceable(folder, is_adapter=policy.adapter is not None)


def check_storable(policy: PolicyModule) -> None:
    """Raise `WeightsError` where a policy is a quantised base alone, or PEFT has merged its adapter away."""
    if policy.adapter is not None and policy.adapter not in getattr(policy, "peft_config", {}):
        raise WeightsError(
            f"The adapter '{policy.adapter}' of this policy is gone: PEFT has merged it along with one of "
            "its own, so what is left cannot be saved as either. Merge the adapter first "
            "(`vla merge`), and give the result to get_peft_model."
        )
    if policy.quantized is not None and policy.adapter is None:
        raise WeightsError(
            f"This policy's weights are stored in {policy.quantized}, which no checkpoint holds: they lie "
            "where they were loaded from, in full, and only an adapter next to them can be saved."
        )


def write_adapter(
    policy: PolicyModule, folder: Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the active adapter into an existing folder, without pipeline.

    Args:
        policy: A policy with an active adapter.
        folder: The folder.
        state_dict: The whole policy's tensors, where they were gathered from several processes.

    Raises:
        WeightsError: The base was never saved as a checkpoint, so the adapter cannot refer to it; or a value
            is not finite; or `state_dict` does not hold the adapter.
    """
    name, base = policy.adapter, base_of(policy)
    assert name is not None
    peft: Any = import_peft()
    if state_dict is not None:
        check_tensors(state_dict)
    lora: Any = policy.peft_config[name]  # type: ignore[index]
    lora.base_model_name_or_path, lora.revision = base.name, base.revision
    options = {"adapter_name": name, "save_embedding_layers": False}
    own = peft.get_peft_model_state_dict(policy, **options)
    stored = own
    if state_dict is not None:
        with misread("state_dict", WeightsError):
            stored = peft.get_peft_model_state_dict(policy, state_dict=state_dict, **options)
        # DeepSpeed leaves an empty tensor where it holds a parameter in parts, and its shape here.
        shapes = {key: tuple(getattr(one, "ds_shape", one.shape)) for key, one in own.items()}
        check_same_names([(frozenset({key}), shape) for key, shape in shapes.items()], stored, "state_dict")
    check_tensors(stored)
    tensors = {_PREFIX + key: tensor.detach().cpu().contiguous() for key, tensor in stored.items()}
    for key, tensor in tensors.items():
        check_finite(key, tensor)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    fields = {
        key: sorted(value) if isinstance(value, set) else value for key, value in lora.to_dict().items()
    } | {"inference_mode": True}
    atomic_write(folder / CONFIG_FILE, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    write_base(policy, folder)


def write_base(policy: PolicyModule, folder: Path) -> None:
    """Write what the active adapter's folder says of its base; raises `WeightsError` as `base_of` does."""
    base, name = base_of(policy), policy.adapter
    assert name is not None
    said = {
        "name": base.name,
        "revision": base.revision,
        "config": base.config,
        "asset_id": base.asset_id,
        "fingerprint": policy.base_fingerprint,
        "quantize": policy.trained_on[name],
    }
    atomic_write(folder / BASE_FILE, json.dumps(said, indent=2) + "\n")


def keep_base(policy: PolicyModule, adapter: Path) -> None:
    """Mark the folder that an adapter rests on, so that nothing of ours removes it or saves in its place.

    Nothing else is ever written to a base, and nothing to a hub's cache. Where a checkpoint of a run cannot
    be marked, the log says so; also where it is one of `transformers`' Trainer, which others may remove.

    Args:
        policy: A policy with an active adapter.
        adapter: Where the adapter is to lie, or its run.
    """
    of = base_of(policy)
    base = Path(of.name)
    path = base / ADAPTERS_FILE
    in_cache = any(part.startswith("models--") for part in base.parts)
    if of.revision is not None or in_cache or not base.is_absolute() or not base.is_dir():
        return
    is_step = base.parent.name == CHECKPOINTS_FOLDER and (base / "training_state.pt").is_file()
    is_trainers = (base / "trainer_state.json").is_file()
    try:
        known = list(read_json(path, WeightsError).get("adapters", ())) if path.exists() else []
        whole = adapter.absolute()
        if not {str(whole), *map(str, whole.parents)} & set(known):
            atomic_write(path, json.dumps({"adapters": [*known, str(whole)]}, indent=2) + "\n")
            if is_trainers:
                logger.warning(
                    "The base of this adapter is %s, a checkpoint of a transformers Trainer, and without "
                    "it the adapter is of no use. A Trainer of policies leaves it where it is from now on; "
                    "where others may remove it (save_total_limit), copy it first.", base,
                )  # fmt: skip
    except (VlaError, TypeError) as error:
        logger.log(
            logging.WARNING if is_step or is_trainers else logging.INFO,
            "The base of this adapter is the checkpoint %s of a training run, which may remove it as it "
            "trains on (train.keep_last), and without it the adapter is of no use: it cannot be marked as "
            "needed (%s). Copy it first, `vla convert %s DST --to vla`, and train the adapter on DST.",
            base, error, base,
        )  # fmt: skip


def base_of(policy: PolicyModule) -> LoadedFrom:
    """Return the checkpoint that an adapter's base was loaded from.

    Raises:
        WeightsError: The base was never saved.
    """
    if policy.loaded_from is None:
        raise WeightsError(
            "This adapter's base was never saved, so the adapter alone would be of no use: save the base "
            "with save_pretrained before an adapter is added, and load it from there; or make one policy of "
            "both with vla.adapters.lora.fold_in, and save that."
        )
    return policy.loaded_from


@default_device_cpu()
def load_adapter(
    policy: PolicyModule, folder: str | Path, name: str = DEFAULT_NAME, dtype: torch.dtype | None = None
) -> None:
    """Load an adapter into its base, next to others that may be in it, and make it the active one.

    The policy's pipeline becomes the adapter's: another robot has other statistics.

    Args:
        policy: The base; changed in place.
        folder: The adapter's folder, or its hub id.
        name: Name of the adapter inside the policy, for `set_adapter`.
        dtype: Dtype of the adapter, where it is to be trained further; None is the base's.

    Raises:
        WeightsError: The adapter was trained on another base, or is damaged; the policy is as it was.
        ConfigError: The name is taken.
        MissingDependencyError: `peft` is not installed.
    """
    peft: Any = import_peft()
    folder = local_folder(folder)
    said = read_base(folder)
    ours = fingerprint(policy)
    if ours != said["fingerprint"]:
        ours_from = policy.loaded_from.name if policy.loaded_from else "weights of no checkpoint"
        raise WeightsError(
            f"The adapter {folder} was trained on {said['name']} with the fingerprint {said['fingerprint']}, "
            f"but this policy, {ours_from}, has the fingerprint {ours}: an adapter only fits its own base. "
            "One that lies elsewhere now is named by base=WHERE (`--base WHERE` on the command line)."
        )
    lora, tensors = _read_adapter(folder)
    pipelines = read_pipelines(folder)
    try:
        inject(policy, lora, name)
    except VlaError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        # peft's, for a config that matches no module or has fields of another kind
        raise WeightsError(f"{folder / CONFIG_FILE} does not fit the policy: {error}") from error
    policy.trained_on[name] = said.get("quantize")
    if dtype is not None or policy.quantized is not None:
        cast_trained(policy, dtype or policy.dtype)  # next to integer weights, `peft` makes it float32
    targets = peft.get_peft_model_state_dict(policy, adapter_name=name, save_embedding_layers=False)
    wanted = {_PREFIX + key: tensor for key, tensor in targets.items()}
    wrong = sorted(
        key
        for key in wanted.keys() | tensors.keys()
        if key not in wanted or key not in tensors or wanted[key].shape != tensors[key].shape
    )
    if wrong:
        remove_adapter(policy, name)
        raise WeightsError(
            f"{folder / WEIGHTS_FILE} does not match its {CONFIG_FILE}: {len(wrong)} tensors are "
            f"missing, too many or of another shape, such as {', '.join(wrong[:3])}. Nothing was loaded."
        )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])
    if pipelines:
        policy.pipelines = pipelines


@default_device_cpu()
def load_with_base(
    folder: Path,
    expected: type[PolicyModule] | None = None,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    tokenizer: Any = None,
    quantize: str | None = None,
    adapter_dtype: torch.dtype | None = None,
    **hub: Any,
) -> PolicyModule:
    """Return the policy of an adapter's folder: its base, with the adapter in it.

    Args:
        folder: The adapter's folder.
        expected: The class that the base must be; None takes what it is.
        base: Folder or hub id of the base, if it moved.
        dtype: Dtype of the weights; None keeps the base's.
        device: Where to put them.
        tokenizer: A tokenizer, or its folder or hub id, where the base has none.
        quantize: "4bit" or "8bit" for the base, whatever it was in training.
        adapter_dtype: Dtype of the adapter, where it is to be trained further; None is the base's.
        **hub: `token`, `cache_dir`, `local_files_only`.

    Raises:
        WeightsError: The base cannot be reached or is not the one that the adapter was trained on; or files
            are damaged.
    """
    said, wanted = read_base(folder), as_dtype(dtype)
    name = said["name"] if base is None else str(base)
    try:
        policy = load_quantized(
            local_folder(name, revision=said["revision"] if base is None else None, **hub),
            expected,
            quantize,
            # Rounded to float16, a base would no longer have its fingerprint.
            dtype=None if wanted == torch.float16 else wanted,
            device=device,
            config=said["config"],
            tokenizer=tokenizer,
            asset_id=said["asset_id"],
        )
    except (WeightsError, StatisticsError) as error:
        raise WeightsError(
            f"The adapter {folder} needs its base {name}, which cannot be opened: {error} If it lies "
            "elsewhere now, name it: base=WHERE, `--base WHERE` on the command line, or "
            "policy.pretrained=WHERE to resume its training."
        ) from error
    load_adapter(policy, folder, dtype=adapter_dtype)
    if wanted is None or adapter_dtype is not None:
        return policy
    return policy.to(wanted)  # type: ignore[arg-type, return-value]


def merge(
    adapter: str | Path,
    dst: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    **hub: Any,
) -> PolicyModule:
    """Write base and adapter as one whole checkpoint, which needs neither of them.

    The base is taken in full precision, also where the adapter was trained on one in 4 or 8 bits; the result
    then differs from the trained policy by the quantisation error, and the log says so.

    Args:
        adapter: Its folder or hub id.
        dst: Folder to make; it must not exist, or be empty.
        base: Folder or hub id of the base, if it moved.
        dtype: Dtype of the merged weights; float32, in which they are summed, where not given.
        **hub: `revision` (the adapter's), `token`, `cache_dir`, `local_files_only`.

    Returns:
        The merged policy.

    Raises:
        WeightsError: The folder holds no adapter that was trained here, or the base cannot be opened.
        SaveError: `dst` holds something already or belongs to a run, or the disk is full. Nothing is left
            behind.
    """
    refuse_run(expanded(dst))
    folder = local_folder(adapter, hub.pop("revision", None), **hub)
    policy = load_with_base(folder, base=base, dtype=torch.float32, **hub)
    if (quantized := policy.trained_on[DEFAULT_NAME]) is not None:
        logger.warning(
            "The adapter was trained on a base in %s and is merged into the base itself: the result differs "
            "from what was trained by the error of the %s.", quantized, quantized,
        )  # fmt: skip
    fold_in(policy)
    policy = policy.to(as_dtype(dtype) or torch.float32)  # type: ignore[arg-type]
    if policy.should_save_on_this_rank(True):
        with atomic_folder(expanded(dst)) as made:
            policy.save_pretrained(made)
    policy.loaded_from = LoadedFrom.of_folder(expanded(dst))
    return policy.eval()


def read_base(folder: Path) -> dict[str, Any]:
    """Return what an adapter's folder says of its base: name, revision, config, asset_id, fingerprint, ...

    Raises:
        WeightsError: The folder holds no adapter that was trained here, or the file is damaged.
    """
    path = folder / BASE_FILE
    if not any((folder / name).exists() for name in ADAPTER_FILES) and holds_checkpoint(folder):
        raise WeightsError(
            f"{folder} is a whole policy and no adapter: there is nothing to merge or to load into another. "
            "It opens as it is, and `vla convert` writes it in another format or dtype."
        )
    said = _read(path)
    if said.keys() - {"quantize"} != {"name", "revision", "config", "asset_id", "fingerprint"}:
        raise WeightsError(f"{path} does not describe an adapter's base: its keys are {sorted(said)}.")
    for key, kinds in _BASE_FIELDS.items():
        if not isinstance(said.get(key), kinds):
            raise WeightsError(f"{path} does not describe an adapter's base: '{key}' is {said.get(key)!r}.")
    return said


def _read(path: Path) -> dict[str, Any]:
    missing = (
        f"{path.parent} holds no adapter that was trained here. One of another library must be merged there "
        "(peft: merge_and_unload), and the result opened."
    )
    return read_json(path, WeightsError, missing)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the fields of an adapter's config, of the kinds that PEFT writes.

    Raises:
        WeightsError: It is not a LoRA's, or a field is of another kind.
    """
    path = folder / CONFIG_FILE
    fields = _read(path)
    if fields.get("peft_type") != "LORA":
        raise WeightsError(f"{path} describes not a LoRA but '{fields.get('peft_type')}'.")

    def above_zero(value: Any) -> bool:
        return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf

    def names(value: Any) -> bool:
        return value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))

    kinds = {
        "r": (above_zero, "a number above 0"),
        "lora_alpha": (above_zero, "a number above 0"),
        "target_modules": (lambda value: isinstance(value, str) or names(value), "a text or a list of names"),
        "modules_to_save": (names, "a list of names"),
    }
    for field, (fits, wanted) in kinds.items():
        if not fits(fields.get(field)):
            raise WeightsError(
                f"{path} does not fit the policy: '{field}' must be {wanted}, got {fields.get(field)!r}; "
                f"{remedy(path)}."
            )
    return fields


def _read_adapter(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the `peft.LoraConfig` and the tensors of an adapter's folder."""
    peft: Any = import_peft()
    path, fields = folder / CONFIG_FILE, read_config(folder)
    fields["inference_mode"] = False
    with misread(path, WeightsError):
        config = peft.LoraConfig.from_peft_type(**fields)
    file = folder / WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} cannot be read: {error}.") from error
    for key, tensor in tensors.items():
        refuse_not_finite(tensor.contiguous(), key, file)
    return config, tensors
