"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.cli.console import PATH, CommandResult, command, parameters, refuse_given
from resdeploy.cli.options import FORCE
from resdeploy.train.config import CROPS, DIGITS, SCHEDULES, TrainingConfig
from resdeploy.train.model.architecture import Shortcut
from resdeploy.train.recipes import RECIPES

if TYPE_CHECKING:
    from resdeploy.train.trainer import TrainingResult


def training_text(result: TrainingResult) -> str:
    """Two lines: where the run is, and how good."""
    return (
        f"{result.run}: {result.accuracy:.2f} % right after {result.epochs} epochs "
        f"({result.images_per_second:.0f} images/s)\n"
        + (f"{result.unreadable} images could not be decoded\n" if result.unreadable else "")
        + "next: resdeploy export --fp16 --int8"
    )


training_options = parameters(
    click.option(
        "--recipe",
        type=click.Choice(list(RECIPES)),
        help="Settings to start from.  [default: quick; finetune with --init, qat with --qat]",
    ),
    click.option(
        "--epochs", type=click.IntRange(1), help="[default, as for all below: the recipe's]"
    ),
    click.option("--image-size", type=click.IntRange(8, 1024), help="Pixels."),
    click.option("--batch-size", type=click.IntRange(2)),
    click.option("--lr", type=float, help="For a batch of 256."),
    click.option("--schedule", type=click.Choice(SCHEDULES)),
    click.option("--warmup-epochs", type=click.FloatRange(0)),
    click.option("--momentum", type=click.FloatRange(0, 1, max_open=True)),
    click.option("--weight-decay", type=click.FloatRange(0)),
    click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True)),
    click.option("--mixup", type=click.FloatRange(0), help="Of its Beta distribution; 0: off."),
    click.option("--cutmix", type=click.FloatRange(0), help="The same."),
    click.option("--randaugment", type=click.IntRange(0, 30), help="Magnitude; 0: off."),
    click.option("--accumulate", type=click.IntRange(1), help="Parts of a batch, to save memory."),
    click.option("--ema", type=click.FloatRange(0, 1, max_open=True), help="Average of weights."),
    click.option("--crop", type=click.Choice(CROPS)),
    click.option("--min-area", type=click.FloatRange(0, 1, min_open=True), help="Of an area crop."),
    click.option("--freeze", is_flag=True, default=None, help="With --init: train the head alone."),
    click.option(
        "--class-weights", is_flag=True, default=None, help="Let rare classes count alike."
    ),
    click.option("--qat", is_flag=True, default=None, help="With --init: adapt it to INT8."),
    click.option(
        "--distillation",
        type=click.FloatRange(0, 1),
        help="With --qat: how far the answers of --init are learned, rather than labels.",
    ),
    click.option(
        "--shortcut",
        type=click.Choice([option.value for option in Shortcut]),
        help="The paper's options; plain has no shortcuts.  [default: B, or that of --init]",
    ),
    click.option(
        "--flip/--no-flip", default=None, help="Mirror images.  [default: not for digits]"
    ),
    click.option("--bf16/--no-bf16", default=None, help="[default: where it is faster]"),
    click.option(
        "--compile/--no-compile", default=None, help="By PyTorch.  [default: on a GPU, if it can]"
    ),
    click.option("--init", help="Weights to start from: a run, a .pth or a .safetensors file."),
    click.option("--seed", type=click.IntRange(0)),
    click.option("--workers", type=click.IntRange(0), help="Processes that decode images."),
    click.option("--save-minutes", type=click.FloatRange(0), help="State within an epoch."),
    click.option("--tensorboard", is_flag=True, default=None, help="Also write its event file."),
)


@click.command()
@click.argument("data", default=DIGITS)
@click.option("-o", "--output", "run", type=PATH, help="Run folder.  [default: runs/DATA-TIME]")
@training_options
@click.option("--resume", type=PATH, help="Go on with this run folder, with its own settings.")
@FORCE
@command
def train(
    data: str,
    run: Path | None,
    resume: Path | None,
    force: bool,
    recipe: str | None,
    **settings: Any,
) -> CommandResult:
    """Train a ResNet-34 on DATA: a folder with train/ and val/, or `digits` (default).

    Under torchrun, all its processes train one network together.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.train import trainer as loop
    from resdeploy.train.distributed import is_main_process

    if resume is not None:
        refuse_given(
            {"data": data, "run": run, "recipe": recipe, **settings},
            "--resume takes the run's own settings",
        )
        result = loop.resume(resume, progress=progress_bar)
    else:
        config = TrainingConfig.from_recipe(recipe, data=data, **settings)
        folder = run or loop.default_folder(data)
        result = training_of(config)(config, folder, force=force, progress=progress_bar)
    return CommandResult(result, training_text(result), printed=is_main_process())


def training_of(config: TrainingConfig) -> Any:
    """The function that trains as `config` says; what quantises it needs the export's packages."""
    from resdeploy.train.trainer import train

    if config.qat:
        from resdeploy.export.quantization.qat_start import train_quantized

        return train_quantized
    return train
