"""What can be set on `resdeploy train`; `TrainingConfig` says more of each."""

from __future__ import annotations

import click

from resdeploy.console import parameters
from resdeploy.train.architecture import Shortcut
from resdeploy.train.config import CROPS, SCHEDULES
from resdeploy.train.recipes import RECIPES

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
