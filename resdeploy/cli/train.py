"""The command `resdeploy train`: train a ResNet on a folder of labelled images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from click import Choice, argument, option

from resdeploy.cli.options.common import FORCE, FiniteRange, Integers, LocalPath
from resdeploy.cli.options.console import PATH, CommandResult, command, reject_options, result_text
from resdeploy.cli.options.preprocessing import preprocessing_options, take_settings
from resdeploy.images.formats import unread_lines
from resdeploy.tables import plural
from resdeploy.train.config import CROPS, DIGITS, SCHEDULES
from resdeploy.train.model.architecture import ARCHITECTURES, Shortcut, Stem
from resdeploy.train.recipes import RECIPES

if TYPE_CHECKING:
    from resdeploy.train.run.results import TrainingResult

BELOW_1 = FiniteRange(0, 1, below=True)


@command
@argument("data", type=LocalPath(str), required=False)
@option("-o", "--output", "run", type=PATH, help="Run folder to write.  [default: runs/DATA-TIME]")
@option(
    "--recipe",
    type=Choice(list(RECIPES)),
    help="Set of settings to start from.  [default: qat with --qat, finetune with weights to start "
    "from, else quick; image size, batch size and epochs fit the images]",
)
@option("--epochs", type=Integers(1), help="Largest number of passes over the training images.")
@option(
    "--patience",
    type=Integers(0),
    help="Stop after this many epochs without a better accuracy or loss; 0: never.  "
    "[default: a third of the epochs, at least 3]",
)
@option(
    "--target-accuracy",
    type=FiniteRange(0, 100, above=True),
    help="Stop at this top-1 accuracy on the validation images, in percent.",
)
@preprocessing_options(
    default_size="as --preprocessing states; or with --recipe, its own; else fits the images"
)
@option("--batch-size", type=Integers(2), help="Number of images per optimiser step.")
@option(
    "--lr",
    type=FiniteRange(0, above=True),
    help="Highest learning rate at a batch size of 256; it is scaled to the actual batch size.",
)
@option(
    "--schedule",
    type=Choice(SCHEDULES),
    help="Decay of the learning rate. cosine: along a half cosine; step: to a tenth after 50 % and "
    "75 % of the epochs.",
)
@option(
    "--warmup-epochs",
    type=FiniteRange(0),
    help="Length of the linear warm-up of the learning rate, in epochs.",
)
@option("--momentum", type=BELOW_1, help="Momentum of SGD.")
@option("--weight-decay", type=FiniteRange(0), help="Weight decay of SGD.")
@option("--label-smoothing", type=BELOW_1, help="Label smoothing of the cross entropy.")
@option("--mixup", type=FiniteRange(0), help="Alpha of mixup's Beta distribution; 0: no mixup.")
@option("--cutmix", type=FiniteRange(0), help="Alpha of CutMix's Beta distribution; 0: no CutMix.")
@option("--randaugment", type=Integers(0, 30), help="Magnitude of RandAugment; 0: off.")
@option(
    "--accumulate",
    type=Integers(1),
    help="Number of parts of a batch that are computed one after another, to save memory.",
)
@option("--ema", type=BELOW_1, help="Decay of the exponential moving average of weights; 0: none.")
@option(
    "--crop",
    type=Choice(CROPS),
    help="Random crop. area: a random area and aspect ratio; scale: a square at a random scale.",
)
@option(
    "--min-area",
    type=FiniteRange(0, 1, above=True),
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
    "--qat", is_flag=True, default=None, help="With --init: quantisation-aware training for INT8."
)
@option(
    "--distillation",
    type=FiniteRange(0, 1),
    help="With --qat: share of the training target that is the prediction of --init; the rest is "
    "the label.",
)
@option(
    "--arch",
    type=Choice(list(ARCHITECTURES)),
    help="Network to train.  [default: that of --init, else resnet34]",
)
@option(
    "--stem",
    type=Choice([stem.value for stem in Stem]),
    help="First layers. imagenet: a 7x7 convolution of stride 2 and max pooling; cifar: a 3x3 "
    "convolution of stride 1.  [default: that of --init, else imagenet]",
)
@option(
    "--shortcut",
    type=Choice([shortcut.value for shortcut in Shortcut]),
    help="Shortcut option of the ResNet paper (A, B or C), or plain for no shortcuts.  [default: "
    "that of --init, "
    "else B]",
)
@option(
    "--flip/--no-flip",
    default=None,
    help="Mirror half of the training images at random.  [default: yes; no for digits]",
)
@option(
    "--bf16/--no-bf16",
    default=None,
    help="Compute in bfloat16, with weights in FP32.  [default: if it is faster here]",
)
@option(
    "--compile/--no-compile",
    default=None,
    help="Compile the network with torch.compile.  [default: on GPUs, if it works]",
)
@option(
    "--init",
    help="Weights to start from: a run folder, a .pth or a .safetensors file; none: a new network. "
    "The outputs keep their order and names; if DATA has other classes, the last layer is new.  "
    "[default: weights of --arch here or in the caches of torchvision and timm]",
)
@option(
    "--seed",
    type=Integers(0),
    help="Seed of all random numbers, also of the choice of validation images.",
)
@option(
    "--workers",
    type=Integers(0),
    help="Number of processes that decode images.  [default: 0 on a CPU, else the cores less 1]",
)
@option(
    "--save-minutes",
    type=FiniteRange(0),
    help="Minutes between two saves of the state within an epoch: the most work that a crash can "
    "lose.  [default: 10]",
)
@option("--tensorboard", is_flag=True, default=None, help="Also write metrics for TensorBoard.")
@option(
    "--resume",
    type=PATH,
    help="Continue the training in this run folder, with its settings. Give DATA if the data has "
    "moved; --workers can be changed.",
)
@option(
    "--finish",
    is_flag=True,
    help="With --resume: train no further, and write model and report of the best epoch so far.",
)
@FORCE
def train(
    run: Path | None, resume: Path | None, finish: bool, force: bool, recipe: str | None,
    **settings: Any,
) -> CommandResult:  # fmt: skip
    """Train a ResNet on DATA.

    DATA is `digits` (the default), a folder with train/ and val/, or one with class folders, of
    which a fifth of each validates. The network of the best epoch is saved. Options without a
    default take the value of the recipe. Under torchrun, all processes train one network together.
    """
    from resdeploy.images.class_folders import require_data
    from resdeploy.progress import progress_bar
    from resdeploy.train.checkpoint.file_kind import refuse_missing

    if resume is None and settings["data"] not in (None, DIGITS):
        require_data(Path(settings["data"]))
    if resume is None and settings["init"] not in (None, "none"):
        refuse_missing(Path(settings["init"]))
    with progress_bar("loading PyTorch", 0):
        from resdeploy.train import trainer
        from resdeploy.train.defaults import choose_run
        from resdeploy.train.distributed import is_main_process
        from resdeploy.train.run.folder import default_folder

    if not is_main_process():  # all processes read the same folders
        for module in ("images", "train.defaults", "train.data"):
            logging.getLogger(f"resdeploy.{module}").setLevel(logging.ERROR)

    if resume is not None:
        kept = [name for name in settings if name not in ("data", "workers")]
        reject_options(("run", "recipe", *kept), "--resume keeps the run's settings")
        result = trainer.resume(
            resume, settings["data"], workers=settings["workers"], finish=finish,
            progress=progress_bar,
        )  # fmt: skip
    else:
        reject_options(("finish",), "only --resume RUN can finish a run")
        stated, file = take_settings(settings), settings.pop("preprocessing")
        config, initial, splits = choose_run(recipe, settings, stated, file)
        run_training: Callable[..., TrainingResult] = trainer.train
        if config.qat:
            from resdeploy.export.quantization.qat_initialization import train_quantized

            run_training = train_quantized
        result = run_training(
            config, run or default_folder(config.data),
            initial=initial, splits=splits, force=force, progress=progress_bar,
        )  # fmt: skip
    return CommandResult(result, training_text(result), printed=is_main_process())


@result_text
def training_text(result: TrainingResult) -> str:
    from resdeploy.bundle.quality import TRAIN_AGAIN
    from resdeploy.train.checkpoint.run import resume_command
    from resdeploy.train.doubts import REMEDIES, chance_doubt
    from resdeploy.train.run.folder import REPORT
    from resdeploy.train.run.outcome import may_improve

    chosen = ", which also chose the epoch" if result.epochs > 1 else ""
    lines = [
        f"{result.run}: top-1 accuracy {result.accuracy:.2f} % after "
        f"{plural(result.epochs, 'epoch')} (median {result.images_per_second:.0f} images/s)",
        f"measured on {plural(result.val_images, 'validation image')}{chosen}; "
        f"always predicting the most frequent class gives {result.baseline_accuracy:.2f} %",
    ]
    if result.stopped:
        lines.append(f"stopped before epoch {result.planned_epochs}: {result.stopped}")
    if result.best_epoch < result.epochs:
        lines.append(
            f"the saved network is that of epoch {result.best_epoch}, the most accurate one"
        )
    elif may_improve(result.best_epoch, result.epochs, result.stopped):
        advice = "a new training with more --epochs may help"
        if result.stopped:
            advice = f"its other epochs may help: {resume_command(result.run)}"
        lines.append(f"the last epoch is the most accurate one, so {advice}")
    lines += unread_lines(result.unreadable, result.passed_over)
    doubt = chance_doubt(result.accuracy, result.val_images, result.baseline_accuracy)
    chance, _, remedies = (doubt or "").rpartition("; ")
    lines += [chance] if doubt else []
    report = result.run / REPORT
    lines.append(f"report: {report}")
    if doubt:
        lines.append(f"next: {remedies}")
    elif result.accuracy > result.baseline_accuracy:
        lines.append(f"next: resdeploy export {quote(str(result.run))} --int8")
    else:
        lines.append(f"next: {TRAIN_AGAIN}; {REMEDIES}")
    return "\n".join(lines)
