"""The command `resdeploy train`: train a ResNet on a folder of labelled images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import Choice, FloatRange, IntRange, argument, option

from resdeploy.cli.console import PATH, CommandResult, command, reject_options
from resdeploy.cli.options import FORCE
from resdeploy.tables import plural
from resdeploy.train.config import CROPS, DIGITS, SCHEDULES, TrainingConfig
from resdeploy.train.model.architecture import Shortcut
from resdeploy.train.recipes import RECIPES

if TYPE_CHECKING:
    from resdeploy.train.trainer import TrainingResult


@command
@argument("data", default=DIGITS)
@option("-o", "--output", "run", type=PATH, help="Run folder to write.  [default: runs/DATA-TIME]")
@option(
    "--recipe",
    type=Choice(list(RECIPES)),
    help="Set of settings to start from.  [default: qat with --qat, finetune with --init, else "
    "quick]",
)
@option("--epochs", type=IntRange(1), help="Passes over the training images.")
@option("--image-size", type=IntRange(8, 1024), help="Height and width of the input, in pixels.")
@option("--batch-size", type=IntRange(2), help="Images per optimiser step.")
@option(
    "--lr",
    type=float,
    help="Highest learning rate at a batch size of 256; it is scaled to the actual batch size.",
)
@option(
    "--schedule",
    type=Choice(SCHEDULES),
    help="Decay of the learning rate; step: to a tenth after 50 % and 75 % of the epochs.",
)
@option("--warmup-epochs", type=FloatRange(0), help="Epochs of linear learning-rate warm-up.")
@option("--momentum", type=FloatRange(0, 1, max_open=True), help="Momentum of SGD.")
@option("--weight-decay", type=FloatRange(0), help="Weight decay of SGD.")
@option(
    "--label-smoothing",
    type=FloatRange(0, 1, max_open=True),
    help="Label smoothing of the cross entropy.",
)
@option("--mixup", type=FloatRange(0), help="Alpha of mixup's Beta distribution; 0: no mixup.")
@option("--cutmix", type=FloatRange(0), help="Alpha of CutMix's Beta distribution; 0: no CutMix.")
@option("--randaugment", type=IntRange(0, 30), help="Magnitude of RandAugment; 0: off.")
@option(
    "--accumulate",
    type=IntRange(1),
    help="Gradient accumulation: parts of a batch that are computed one after the other.",
)
@option(
    "--ema",
    type=FloatRange(0, 1, max_open=True),
    help="Decay of the exponential moving average of the weights; 0: no average.",
)
@option(
    "--crop",
    type=Choice(CROPS),
    help="Random crop; area: a random area and aspect ratio, scale: a square at a random scale.",
)
@option(
    "--min-area",
    type=FloatRange(0, 1, min_open=True),
    help="Smallest share of the image that --crop area keeps.",
)
@option("--freeze", is_flag=True, default=None, help="With --init: train only the classifier.")
@option(
    "--class-weights",
    is_flag=True,
    default=None,
    help="Weight the loss so that all classes count equally, however many images they have.",
)
@option(
    "--qat",
    is_flag=True,
    default=None,
    help="With --init: quantisation-aware training for int8.onnx.",
)
@option(
    "--distillation",
    type=FloatRange(0, 1),
    help="With --qat: weight of the predictions of --init as training targets, against the "
    "labels; 1: no labels.",
)
@option(
    "--shortcut",
    type=Choice([option.value for option in Shortcut]),
    help="Shortcut option of the ResNet paper; plain: no shortcuts.  [default: that of --init, "
    "else B]",
)
@option(
    "--flip/--no-flip",
    default=None,
    help="Mirror images at random.  [default: yes, except for digits]",
)
@option(
    "--bf16/--no-bf16", default=None, help="Compute in bfloat16.  [default: if it is faster here]"
)
@option(
    "--compile/--no-compile",
    default=None,
    help="Use torch.compile.  [default: on a GPU, if it works there]",
)
@option("--init", help="Weights to start from: a run folder, a .pth or a .safetensors file.")
@option("--seed", type=IntRange(0), help="Seed of all random numbers.")
@option(
    "--workers",
    type=IntRange(0),
    help="Processes that decode images.  [default: 0 on a CPU, else one per core but one]",
)
@option(
    "--save-minutes",
    type=FloatRange(0),
    help="Minutes between two saves of the state within an epoch.",
)
@option("--tensorboard", is_flag=True, default=None, help="Also write metrics for TensorBoard.")
@option("--resume", type=PATH, help="Continue the training in this run folder, with its settings.")
@FORCE
def train(
    data: str,
    run: Path | None,
    resume: Path | None,
    force: bool,
    recipe: str | None,
    **settings: Any,
) -> CommandResult:
    """Train a ResNet-34 on DATA.

    DATA is a folder with train/ and val/, or `digits` (the default). Under torchrun, all processes
    train one network together.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.train import trainer
    from resdeploy.train.distributed import is_main_process

    if resume is not None:
        reject_options(
            {"data": data, "run": run, "recipe": recipe, **settings},
            "--resume takes the run's own settings",
        )
        result = trainer.resume(resume, progress=progress_bar)
    else:
        config = TrainingConfig.from_recipe(recipe, data=data, **settings)
        run_training: Callable[..., TrainingResult] = trainer.train
        if config.qat:
            from resdeploy.export.quantization.qat_start import train_quantized

            run_training = train_quantized
        folder = run or trainer.default_folder(data)
        result = run_training(config, folder, force=force, progress=progress_bar)
    return CommandResult(result, training_text(result), printed=is_main_process())


def training_text(result: TrainingResult) -> str:
    """Return the run folder, its accuracy and speed, and the command to export it."""
    lines = [
        f"{result.run}: top-1 accuracy {result.accuracy:.2f} % after "
        f"{plural(result.epochs, 'epoch')} ({result.images_per_second:.0f} images/s)",
        *([f"skipped {plural(result.unreadable, 'image')} that could not be decoded"]
          if result.unreadable else []),
        "next: resdeploy export --fp16 --int8",
    ]  # fmt: skip
    return "\n".join(lines)
