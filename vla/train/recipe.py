"""A recipe: everything that decides a training run, typed, from YAML and dotted overrides.

    policy:                       # what is trained
      type: pi0
    data:                         # what it is trained on
      path: lerobot/aloha_sim_transfer_cube_human
    train:                        # how
      steps: 20000
    output: runs/cube             # where the run's folder goes

Every key but `data.path` and `output` has a default. Those of `train` are pi-0's; another policy brings its
own where it wants others (`Policy.training_defaults`), and `vla.train.resolve` puts them in. Choices that
only a policy can name (`policy.freeze`, presets) are strings here, and checked there.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from omegaconf import OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    field_validator,
    model_validator,
)

from vla.data.hf.options import ColumnNames, TableOptions
from vla.data.hf.source import PREFIX, is_table
from vla.errors import ConfigError
from vla.paths import expanded_text
from vla.types import ACTION_KEY, STATE_KEY, Columns, as_targets, columns_of


def _as_flag(value: Any) -> Any:
    return bool(value) if type(value) is int and value in (0, 1) else value


Flag = Annotated[bool, BeforeValidator(_as_flag)]
"""One of a list of flags: true or false, or 1 or 0 as on the command line."""

Mode = Literal["zscore", "quantile", "minmax", "identity"]
"""Ways to normalise a feature; see `vla.transforms.normalize`."""


def _known_modes(value: object) -> object:
    """Say in one sentence what a normalisation may be, where pydantic would report each alternative."""
    known = get_args(Mode)
    given = value.values() if isinstance(value, dict) else [] if value is None else [value]
    if wrong := [mode for mode in given if mode not in known]:
        raise ValueError(
            f"normalization must be one of {', '.join(known)}, or a mapping of features (state, actions) to "
            f"them, got {wrong[0]!r}"
        )
    return value


def _scopes(value: object) -> object:
    """Say in one sentence what may be compiled, where pydantic would report each alternative."""
    if not isinstance(value, bool) and value not in ("layers", "stack"):
        raise ValueError(f"compile must be false, true, layers or stack, got {value!r}")
    return value


def _named_columns(value: object) -> object:
    """Say in one sentence what a key may be, where pydantic would report each alternative."""
    columns = tuple(value) if isinstance(value, list) else value
    try:
        columns_of(columns)  # pyright: ignore[reportArgumentType] (that is what it checks)
    except ConfigError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return columns


def _targets(value: object) -> object:
    """Say in one sentence what they may be, where pydantic would report each alternative."""
    return None if value is None else as_targets(value)


JoinedColumns = Annotated[Columns, BeforeValidator(_named_columns)]

Normalization = Annotated[Mode | dict[str, Mode] | None, BeforeValidator(_known_modes)]


def _plain(value: str) -> str:
    """Refuse what no file, hub or text can hold."""
    if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in value):
        raise ValueError(f"{value!r} holds a character that no path or name can have")
    return value


Text = Annotated[str, AfterValidator(_plain)]
Location = Annotated[Text, AfterValidator(expanded_text)]
"""A folder, a file, a hub id or a known name; `~` is the home folder, `$NAME` an environment variable."""


def _whole(value: object) -> object:
    """Return 1e3, which YAML reads as a float, as 1000."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


WholeNumber = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[WholeNumber, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class AdapterSection(_Section):
    """A low-rank adapter (LoRA) that is trained in place of the weights."""

    preset: Text | None = None
    """Which linear layers are adapted, by a name that the policy offers (pi-0: "expert", "vlm+expert",
    "attention", "all-linear"); null is its first. Small layers that are new for every robot are trained
    whole."""
    targets: Annotated[Text | tuple[Text, ...] | None, BeforeValidator(_targets)] = None
    """Instead of the preset: a regular expression that the full names of the linear layers match; or, as
    `peft` takes them, how their names end, `q_proj`, `[q_proj, v_proj]`, or `all-linear`."""
    rank: Count = 16
    alpha: PositiveFloat = 16.0
    """The change is scaled by alpha / rank; with `rslora` by alpha / sqrt(rank)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dora: bool = False
    """Learn magnitude and direction of the weights apart."""
    rslora: bool = False
    quantize: Literal["4bit", "8bit"] | None = None
    """QLoRA: store the frozen linear layers in 4 bits (NF4) or 8. Needs the extra `quant`, and an engine that
    shards no weights. Null stores them like everything else that is frozen: in bfloat16 with
    `train.precision: bf16`, else in float32."""


class PolicySection(_Section):
    """What is trained."""

    type: Text = "pi0"
    """The policy's folder in `vla.policies`."""
    pretrained: Location | None = None
    """Folder, hub id or known name of the policy to start from, in any format; null is random weights."""
    paligemma: Location | None = None
    """Folder or hub id of a PaliGemma to start from: the expert next to it is fresh. Not together with
    `pretrained`."""
    backbone: Location | None = None
    """The same for any policy that begins with another model's weights: `paligemma` under a general name, of
    which a recipe gives one."""
    preset: Text | None = None
    """A named size of the policy's config ("tiny"); null is its full size, or that of the weights."""
    config: dict[str, Any] = {}
    """Values of the policy's config that differ from the preset, or from that of the pretrained weights; not
    those that the weights decide."""
    tokenizer: Location | None = None
    """Folder or hub id. Null takes the pretrained policy's tokenizer, or, from scratch, trains a small one
    on the dataset's task and response texts."""
    freeze: Text = "none"
    """What is not trained, by a name that the policy offers (pi-0: "vision", the vision tower; "vlm", the
    whole vision-language model, so that only the expert and the layers around it are trained)."""
    adapter: AdapterSection | None = None
    """Train an adapter of `pretrained`, and save it alone; null trains the weights. `vla merge` combines the
    two into one checkpoint."""

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> Self:
        if self.adapter is not None and self.pretrained is None:
            raise ValueError("adapter needs `pretrained`: an adapter is of no use without its base")
        if self.adapter is not None and self.freeze != "none":
            raise ValueError("adapter freezes the whole base already; leave `freeze` out")
        return self

    @model_validator(mode="after")
    def _weights_have_their_size(self) -> Self:
        if self.paligemma is not None and self.backbone is not None:
            raise ValueError("`paligemma` is another name of `backbone`: give one of them")
        if self.pretrained is not None and self.backbone_source is not None:
            key = "paligemma" if self.backbone is None else "backbone"
            raise ValueError(f"training starts from `pretrained` or from `{key}`, not from both")
        if self.preset is not None and (self.pretrained or self.backbone_source):
            raise ValueError("preset must stay empty where weights are given: they decide the size")
        return self

    @property
    def backbone_source(self) -> str | None:
        """The model to begin with, under whichever of its two keys it is given."""
        return self.paligemma if self.backbone is None else self.backbone


class ColumnsSection(_Section):
    """Columns of a table of `datasets` that say which frame a row is, and what was to be done.

    Images, state and actions are named by `cameras`, `state_key` and `action_key`, as of every dataset.
    """

    task: Text = "task"
    """The instruction: text or class labels."""
    episode: Text = "episode_index"
    """Which episode a row belongs to: whole numbers, text or class labels."""
    frame: Text | None = None
    """Number of the frame within its episode. Null takes `frame_index` where there is such a column, and else
    the order of the rows."""
    timestamp: Text | None = None
    """Seconds. Null takes `timestamp` where there is such a column, and else counts frames."""

    @model_validator(mode="before")
    @classmethod
    def _others_have_keys(cls, value: Any) -> Any:
        keys = {"images": "cameras", "cameras": "cameras", "state": "state_key", "action": "action_key"}
        for name in keys.keys() & set(value if isinstance(value, Mapping) else ()):
            raise ValueError(f"'{name}' is named by data.{keys[name]}, for every kind of dataset")
        return value


class _Table(_Section):
    """What is said of a table of `datasets`, and of no LeRobot dataset, which says so by itself."""

    path: Location
    """Folder or hub id; `hf:` before it asks for a table of `datasets`."""
    columns: ColumnsSection = ColumnsSection()
    """With `path: hf:...`: further columns, by name."""
    split: Text | None = None
    """With `path: hf:...`: which split; null is the only one, or `train`."""
    subset: Text | None = None
    """With `path: hf:...`: which subset of a hub dataset."""
    fps: PositiveFloat | None = None
    """With `path: hf:...`: frames per second; null takes them from the timestamps."""

    @property
    def table(self) -> TableOptions:
        """How a table is read."""
        columns = ColumnNames(**self.columns.model_dump())
        return TableOptions(columns, self.split, self.subset, self.fps)

    @model_validator(mode="after")
    def _only_of_tables(self) -> Self:
        said = [
            key
            for key in ("columns", "split", "subset", "fps")
            if getattr(self, key) != type(self).model_fields[key].default
        ]
        if self.path and said and not is_table(self.path):
            raise ValueError(
                f"{said[0]} is for tables of `datasets` (path: hf:...): a LeRobot dataset says it by itself"
            )
        return self


class MixtureMember(_Table):
    """One dataset of a mixture. Keys that are left out have the value of the same key of `data`."""

    revision: Text | None = None
    name: Text | None = None
    """What its pipeline is called in the checkpoint; null is the last part of `path`."""
    weight: PositiveFloat
    """Its share of the samples, relative to the other members', however many frames it has."""
    robot: Location | None = None
    episodes: tuple[WholeNumber, ...] | None = None
    cameras: dict[str, str] | None = None
    response_key: Text | None = None
    """Null trains no text on this dataset."""
    state_key: JoinedColumns = STATE_KEY
    action_key: JoinedColumns = ACTION_KEY
    normalization: Normalization = None
    delta_mask: tuple[Flag, ...] | None = None


def member_name(member: MixtureMember) -> str:
    """Return what a member's pipeline is called in the checkpoint."""
    return member.name or member.path.removeprefix(PREFIX).rstrip("/").rsplit("/", 1)[-1]


class DataSection(_Table):
    """What it is trained on."""

    path: Location
    """A LeRobot dataset, v2.1 or v3.0: folder or hub id. Or a table of Hugging Face `datasets`, one frame a
    row: `hf:` and a folder (of `save_to_disk`, or of parquet files) or hub id. Empty where `mixture` is
    given."""
    revision: Text | None = None
    """Branch, tag or commit of a hub dataset; null is its main branch as it is when the run starts."""
    mixture: tuple[MixtureMember, ...] | None = None
    """Several datasets instead of `path`, each with its own weight, cameras, conventions and statistics."""
    robot: Location | None = None
    """Robot file (recipes/robots/*.yaml): its signs and gripper scales come before normalisation, and it
    supplies cameras, wrist_cameras, delta_mask, state_key and action_key where the recipe gives none."""
    episodes: tuple[WholeNumber, ...] | None = None
    """Episodes to use, the held-out ones included; null is all of them."""
    cameras: dict[str, str] | None = None
    """Camera slot of the policy -> camera key of the dataset. Null gives every camera of the dataset a slot
    called by the last part of its key ("observation.images.top" -> "top")."""
    wrist_cameras: tuple[str, ...] | None = None
    """Slots that ride on the gripper: augmentation never crops or rotates them. Null leaves it to the config
    of the policy (pi-0: slots with "wrist" in their name)."""
    response_key: Text | None = None
    """String feature that the policy learns to say; null trains no text."""
    state_key: JoinedColumns = STATE_KEY
    """Column of the state, or a list of columns that are joined in this order."""
    action_key: JoinedColumns = ACTION_KEY
    """The same of the actions."""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the episodes that is held out, at least one of them; 0 holds out none."""
    normalization: Normalization = None
    """"zscore", "quantile", "minmax" or "identity"; or one per feature, `{state: zscore, actions: minmax}`.
    Null, and a feature that is left out, is the policy's own: z-scores for pi-0, quantiles for pi-0.5."""
    delta_mask: tuple[Flag, ...] | None = None
    """Action dimensions learned relative to the state, one flag each, missing ones false; null is none."""
    augment: bool = True
    """Crop, rotate and recolour the training images, drawn anew for every sample."""
    num_workers: WholeNumber = Field(default=2, ge=0, le=1024)
    """Processes that read ahead; 0 reads in the training process. The samples are the same."""
    cache: Literal["none", "frames", "samples"] = "none"
    """Keep decoded frames, or finished samples (only without augmentation), in memory: for small datasets."""
    streaming: bool = False
    """Download each video of a hub dataset when it is first needed, and go through the files in an order that
    needs few at a time (`streaming_window`). A folder has its files already, and is read in that order."""
    streaming_window: Count = 64
    """Episodes that are mixed with one another at any time, about, while streaming: more shuffle better, and
    need more files at once."""
    streaming_disk_gb: float | None = Field(default=None, gt=0)
    """Disk space for the streamed videos of a dataset on each machine, 10^9 bytes; null keeps all of them."""
    open_videos: Count = 64
    """Video files of a dataset that each process keeps open; where more are read at a time, they are opened
    over and over."""
    feature_cache: Location | None = None
    """Folder for what frozen parts (`policy.freeze`) make of every frame, computed once, where `augment` is
    off. Training then reads no video and never runs them."""
    feature_cache_of: Text = "vision"
    """What is kept there: the vision tower's features; or, where the whole vision-language model is frozen
    and no text is trained, the keys and values that the expert reads, about 15 MB a frame at full size."""
    bucket_by_length: bool = False
    """Let samples whose texts are about as long share a step, so that less padding is computed; the order
    within an epoch is then random among steps, not among all samples."""
    tolerance_s: float | None = Field(default=None, gt=0)
    """Largest distance of a video frame from its timestamp, seconds; null is the dataset room's default."""

    @model_validator(mode="after")
    def _path_or_mixture(self) -> Self:
        if self.path and self.mixture is not None:
            raise ValueError(
                "give `path` or `mixture`, not both: data.path=null or data.mixture=null takes one away"
            )
        if self.mixture == ():
            raise ValueError("data.mixture is empty: list its datasets, [{path: ..., weight: 1}, ...]")
        if not self.path and self.mixture is None:
            raise ValueError("give the dataset, `path`, or several of them, `mixture`")
        if self.revision is not None and self.mixture is not None:
            raise ValueError("with `mixture`, give each member its own revision")
        return self

    @model_validator(mode="after")
    def _streaming_reads_once(self) -> Self:
        if self.streaming and (self.cache != "none" or self.feature_cache is not None):
            what = f"cache={self.cache}" if self.cache != "none" else "feature_cache"
            raise ValueError(
                f"streaming downloads videos as they are needed, and {what} needs all at the start"
            )
        if not self.streaming and self.streaming_disk_gb is not None:
            raise ValueError("streaming_disk_gb is for streaming=true")
        return self

    @model_validator(mode="after")
    def _features_have_a_folder(self) -> Self:
        if self.feature_cache_of != "vision" and self.feature_cache is None:
            raise ValueError("feature_cache_of needs a folder, `feature_cache`")
        return self

    @model_validator(mode="after")
    def _cached_samples_are_fixed(self) -> Self:
        if self.cache == "samples" and self.augment:
            raise ValueError(
                "cache=samples keeps finished samples, which needs augment=false; or use cache=frames"
            )
        return self


class RolloutSection(_Section):
    """Episodes in a simulator while training: the same ones every time."""

    env: str
    """Gymnasium id (docs/simulators.md)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the environment is made with: `{size: 80}`."""
    conditions: tuple[str, ...] | None = None
    """Which of the environment's conditions; null runs all."""
    episodes: Count = 10
    """Under each condition."""
    seed: WholeNumber = Field(default=200_000, ge=0, lt=2**53)
    """First seed of the episodes, and the seed of the noise. `vla eval` begins at 100000."""
    execute: Count | None = None
    """Actions executed of each chunk; null is half of it, or what the policy says."""
    batch_size: Count = 50
    """Episodes at once."""
    workers: Annotated[WholeNumber, Field(ge=0, le=256)] = 0
    """Processes that the environments run in; 0 is the main one."""
    pipeline: str | None = None
    """Of a mixture: which robot acts."""


class TrainSection(_Section):
    """How it is trained. A step is one optimiser step."""

    steps: Count = 30_000
    batch_size: Count = 32
    """Samples of one forward pass of one process."""
    accumulation: Count = 1
    """Forward passes per step."""
    total_batch_size: Count | None = None
    """Samples of one step, checked to be batch_size x accumulation x processes; null leaves it unchecked."""
    learning_rate: PositiveFloat = 2.5e-5
    warmup_steps: WholeNumber = Field(default=1000, ge=0)
    final_learning_rate: float = Field(default=2.5e-6, ge=0)
    decay_steps: Count | None = None
    """Step at which the cosine reaches `final_learning_rate`; null is `steps`."""
    weight_decay: float = Field(default=1e-10, ge=0)
    betas: tuple[Ratio, Ratio] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps AdamW's moments in 2 bytes per weight, not in 8 (bitsandbytes, the extra `quant`)."""
    clip_norm: PositiveFloat = 1.0
    precision: Literal["no", "bf16"] = "bf16"
    """Compute dtype of the forward pass; weights and optimiser stay float32."""
    tf32: bool = True
    """On CUDA, what is multiplied in float32 may round its factors to TF32's 11 bits; faster."""
    peak_tflops: PositiveFloat | None = None
    """What one device can do at most at this precision, 10^12 operations per second, for `mfu`. Null takes
    the data sheet's value for GPUs that are known, and leaves `mfu` out for others."""
    seed: WholeNumber = Field(default=42, ge=0, lt=2**63)
    draws_per_observation: Count | None = None
    """Noise draws that share one observation in a training pass, for policies that draw noise; null is what
    the policy's config says. Held-out losses are measured with the config's."""
    activation_checkpointing: Literal["none", "all", "every_2"] = "none"
    """Layers that keep their input alone and compute the rest again for the backward pass: less memory, about
    a third more time; "every_2" is half of both. `gradient_checkpointing: true` is an older name of "all"."""
    compile: Annotated[bool | Literal["layers", "stack"], BeforeValidator(_scopes)] = False
    """What torch.compile compiles, which takes minutes at the start. "layers": each layer by itself. "stack":
    the training pass as two large functions, the vision tower and all that follows, losses included; not
    where an engine shards the weights. `true` is "layers"."""
    log_every: Count = 100
    validate_every: Count | None = 1000
    """Null never measures the held-out loss."""
    validation_batches: Count = 20
    """At most so many batches of held-out samples, always the same ones."""
    open_loop_every: Count | None = None
    """Null never runs the open-loop evaluation."""
    plot_every: Count | None = None
    """Draws sampled chunks against recorded ones into the run's `plots/`; null never does."""
    rollout_every: Count | None = None
    """Runs the episodes of `rollout`, and records the share that succeeds; null never does."""
    rollout: RolloutSection | None = None
    save_every: Count = 1000
    checkpoints: Literal["gathered", "sharded"] = "gathered"
    """gathered: the main process writes whole weights and AdamW's state. sharded: every process writes its
    own rows of them, at the same time and without sending any; not under ZeRO."""
    keep_last: Count | None = 3
    """Checkpoints to keep; null keeps all."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the average of the trained weights (openpi takes 0.99); null keeps none. Validation,
    open-loop evaluation and the saved policy then have the averaged weights; `training/` has those
    that training continues with."""
    ema_power: float | None = Field(default=None, gt=0)
    """Let the average forget its first weights: its decay begins at 0 and rises, `1 - step ** -ema_power`, up
    to `ema` (Diffusion Policy takes 0.75); null has `ema` from the first step."""
    threads: Annotated[Count, Field(le=4096)] | None = None
    """CPU threads of torch; null is torch's own choice."""
    tensorboard: bool = True
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where the numbers of metrics.jsonl go besides TensorBoard (`tensorboard`, which naming it here turns on
    as well): each is an extra of its name, and `WANDB_MODE=offline` needs no network."""

    @field_validator("precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: object) -> object:
        return "no" if value is False else value

    @model_validator(mode="after")
    def _rollouts_have_an_environment(self) -> Self:
        if self.rollout_every is not None and self.rollout is None:
            raise ValueError("rollout_every needs `rollout`: at least {env: vla/Detour-v0}")
        return self

    @model_validator(mode="after")
    def _power_is_of_an_average(self) -> Self:
        if self.ema_power is not None and self.ema is None:
            raise ValueError(
                "ema_power says how the decay rises to `ema`, which is null: give both or neither"
            )
        return self


class Recipe(_Section):
    """One training run; see the sections for what each key means."""

    policy: PolicySection = PolicySection()
    data: DataSection
    train: TrainSection = TrainSection()
    output: Annotated[Location, Field(min_length=1)]
    """The run's folder; it must be absent or empty, or hold a run that ended before its first checkpoint,
    except to resume."""

    def flat(self) -> dict[str, Any]:
        """Return every value by its dotted key, `{"train.steps": 30000, ...}`."""
        return dict(flatten(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `load_recipe` reads back to an equal recipe."""
        # By its own writer, which quotes what its reader would take for a number ("0E0").
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by their dotted keys, which begin with `prefix`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
