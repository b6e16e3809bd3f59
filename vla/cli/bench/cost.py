"""`vla bench`: what a policy costs on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vla.cli.console import console, parse_numbers, quiet_loading, stages
from vla.cli.info.memory import memory_explained
from vla.cli.paths import check_file
from vla.errors import ConfigError

if TYPE_CHECKING:
    from vla.bench import BenchOptions, Report

_Value = TypeVar("_Value", str, int)

DEFAULT_POLICY = "pi0"

PolicyOption = Annotated[
    str | None,
    typer.Option(
        help="Policy name; checkpoint (folder, run folder, hub id, short name); or a YAML file, as a recipe.",
        show_default=DEFAULT_POLICY,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Of an adapter: where its base lies, if no longer where it says.", metavar="WHERE"),
]
PromptOption = Annotated[
    int | None, typer.Option(help="Length of the prompt; by default the longest that the policy takes.")
]
LevelOption = Annotated[
    str | None,
    typer.Option(help="Levels of sampling: plain, graph, compiled, triton; by default those that pay."),
]
AgainstOption = Annotated[
    str | None, typer.Option(help="transformers: compare with its PI0, same weights, run in turn.")
]
CompileOption = Annotated[
    str | None, typer.Option(help="Training steps compiled as well, as train.compile: layers,stack.")
]
RoundsOption = Annotated[
    int | None, typer.Option(help="Timed runs of each part; by default a few seconds' worth.")
]


def bench(
    context: typer.Context,
    policy: PolicyOption = None,
    base: BaseOption = None,
    preset: Annotated[
        str | None, typer.Option(help="full, wide, middle or tiny; full where not given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default PyTorch's choice.")] = None,
    batch: Annotated[int, typer.Option(help="Observations per call.")] = 1,
    level: LevelOption = None,
    cameras_present: Annotated[
        int | None, typer.Option(help="Cameras that are there; all by default.")
    ] = None,
    prompt_tokens: PromptOption = None,
    rounds: RoundsOption = None,
    train: Annotated[bool, typer.Option("--train/--no-train", help="Time training steps as well.")] = True,
    draws: Annotated[str, typer.Option(help="Noise draws per observation of the training steps.")] = "1,4",
    compile: CompileOption = None,
    against: AgainstOption = None,
    clock: Annotated[
        str, typer.Option(help="wall, or process: CPU time, which busy neighbours do not disturb (1 thread).")
    ] = "wall",
    json: Annotated[Path | None, typer.Option(help="Write everything to this file as well.")] = None,
    config: Annotated[str | None, typer.Option(hidden=True)] = None,
    repeats: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time a policy's full sample, the parts of it, and its training step on this machine.

    Medians after a warm-up with their quartiles, operations, the share of the matrix product's peak
    measured in the same run, and memory. Weights are random unless a checkpoint is given. The commands
    `draws` and `features` train instead, to measure what makes the same learning cheaper.

    Example: vla bench --policy pi0 --dtype bfloat16

    Example: vla bench --preset middle --against transformers

    Example: vla bench draws
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    from vla.bench import BenchOptions, run_bench

    if json is not None:
        check_file(json, "--json")
    chosen = _one_of("--policy", policy, "--config", config) or DEFAULT_POLICY
    options = BenchOptions(
        **_policy(chosen, preset),
        base=base,
        dtype=dtype,
        device=device,
        threads=threads,
        batch=batch,
        levels=_names(level),
        cameras_present=cameras_present,
        prompt_tokens=prompt_tokens,
        draws=tuple(parse_numbers(draws, "--draws")),
        train=train,
        compile=_names(compile),
        rounds=_one_of("--rounds", rounds, "--repeats", repeats),
        clock=clock,
        against=against,
    )
    quiet_loading()
    with memory_explained(lambda: _config(options), batch), stages() as say:
        report = run_bench(options, say=say)
    _show(report)
    if json is not None:
        report.save(json)


def _names(value: str | None) -> tuple[str, ...]:
    """Return the names of a list that is separated by commas."""
    return tuple(one.strip() for one in (value or "").split(",") if one.strip())


def _config(options: "BenchOptions") -> Any:
    from vla.bench.subject import config_of

    return config_of(options)


def _refuse_options(context: typer.Context) -> None:
    """Raise `ConfigError` where options stand before the subcommand, which would not see them."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} stands before '{context.invoked_subcommand}', which has its own options: "
                f"see vla bench {context.invoked_subcommand} --help."
            )


def _one_of(name: str, value: _Value | None, older_name: str, older: _Value | None) -> _Value | None:
    """Return an option's value, which may be given under its older name instead."""
    if value is not None and older is not None:
        raise ConfigError(f"{older_name} is the older name of {name}: leave out {older_name}.")
    return older if value is None else value


def _policy(policy: str, preset: str | None) -> dict[str, Any]:
    """Return the options that name the policy; a YAML file may be a recipe, or its policy section."""
    if not policy.endswith((".yaml", ".yml")):
        return {"policy": policy, "preset": preset}
    from vla.train.recipe_file import load_policy_section

    section = load_policy_section(policy)
    return {
        "policy": section.pretrained or section.type,
        "preset": preset or section.preset,
        "overrides": section.config,
    }


def _show(report: "Report") -> None:
    out = console()
    settings, versions = report.settings, report.versions
    out.print(f"{report.machine}; {settings['threads']} threads, {settings['device']}, {settings['dtype']}")
    out.print(", ".join(f"{name} {version}" for name, version in versions.items()))
    out.print(
        f"{settings['policy']}: {report.parameters / 1e6:,.1f} million parameters, "
        f"{report.weights_bytes / 1e9:.2f} GB, built in {report.build_seconds:.1f} s"
    )
    peaks = ", ".join(f"{rate / 1e9:,.1f} ({kernel})" for kernel, rate in report.peak.items())
    out.print(f"matmul peak in GFLOP/s: {peaks}; shares are of the highest")
    out.print(_rows_table(report))
    for row in report.rows:
        if row.samples_per_second is not None:
            out.print(f"{row.part}: {row.samples_per_second:,.2f} samples/s")
    if report.ratios:
        out.print(_ratios_table(report))
    for level, costs in report.levels.items():
        said = f"level {level}: warm after {costs['warm_up_seconds']:.1f} s"
        own = f"{costs['resident_bytes'] / 1e9:.2f} GB"
        if level != "plain":
            said += f" ({costs['programs']:.0f} programs)"
            own += (
                f", {costs['extra_bytes'] / 1e9:.2f} of them its own; chunk within "
                f"{costs['difference']:.1e} of plain"
            )
        out.print(f"{said}, weights {own}")
    for part, reason in report.skipped.items():
        out.print(f"not timed: {part}: {reason}")
    if report.largest_difference is not None:
        out.print(f"largest difference of the samples: {report.largest_difference:.1e}")
    memory = ", ".join(f"{size / 1e9:.2f} GB after {stage}" for stage, size in report.peak_memory.items())
    out.print(f"peak memory: {memory}")


def _rows_table(report: "Report") -> Any:
    from rich.table import Table

    table = Table("part")
    for heading in ("median", "quartiles", "runs", "GFLOP", "GFLOP/s", "of peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        timing, share = row.timing, report.share(row)
        table.add_row(
            row.part,
            _seconds(timing.median),
            _range(timing.lower, timing.upper, like=timing.median),
            str(timing.rounds),
            "" if row.flops is None else f"{row.flops / 1e9:,.2f}",
            "" if row.rate is None else f"{row.rate / 1e9:,.1f}",
            "" if share is None else f"{share:.0%}",
        )
    return table


def _ratios_table(report: "Report") -> Any:
    from rich.table import Table

    table = Table("ratio of medians")
    table.add_column("", justify="right")
    for ratio in report.ratios:
        table.add_row(ratio.name, f"{ratio.value:.2f}")
    return table


def _seconds(value: float) -> str:
    factor, digits, unit = _unit(value)
    return f"{value * factor:,.{digits}f} {unit}"


def _range(lower: float, upper: float, like: float) -> str:
    """Show a range in the unit that `like` has."""
    factor, digits, _ = _unit(like)
    return f"{lower * factor:,.{digits}f}-{upper * factor:,.{digits}f}"


def _unit(seconds: float) -> tuple[float, int, str]:
    return (1.0, 2, "s") if seconds >= 1 else (1e3, 1, "ms")
