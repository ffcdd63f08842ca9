"""Start of quantisation-aware training, with the placement and calibration of the export.

The export decides what is quantised, and `train` must not import it; so this module joins them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.scales import symmetric_parameters
from resdeploy.errors import TrainingError
from resdeploy.export.graph.placement import WEIGHTED
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.export.inputs import read_source
from resdeploy.export.network_check import check_network, label_warnings, shift_warnings
from resdeploy.export.quantization.calibrate import calibrate
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.source.network import TorchClassifier
from resdeploy.images.preprocessing import Channels, Preprocessing, size_text
from resdeploy.images.preprocessing_settings import settings_of
from resdeploy.progress import Progress, silent
from resdeploy.train import trainer
from resdeploy.train.checkpoint.load import Checkpoint
from resdeploy.train.config import DIGITS, TrainingConfig
from resdeploy.train.data.dataset import DataSplits, read_splits
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.initialization import initial_network, prepare
from resdeploy.train.model.resnet import Classifier, first_convolution, normed_convolutions
from resdeploy.train.qat.network import QuantizedStart
from resdeploy.train.run.output import check_new_run
from resdeploy.train.run.results import TrainingResult

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 512


def train_quantized(
    config: TrainingConfig, folder: Path, *, initial: Checkpoint | None = None,
    splits: DataSplits | None = None, force: bool = False, progress: Progress = silent,
) -> TrainingResult:  # fmt: skip
    """Train `config.init` for INT8 and write a run folder with the ranges for the export.

    Raises:
        OutputError: `folder` exists and `force` is not set, or it cannot be written.
        CalibrationError: There are no calibration images.
        DataError: The labels do not fit the predictions of the network.
        TrainingError: The network takes images of another size, or `trainer.train` raises it.
    """
    check_new_run(folder, force=force)
    if initial is None:
        config, initial = prepare(config)
    assert initial is not None
    data = digits_folder() if config.data == DIGITS else Path(config.data)
    splits = splits or read_splits(data, config.seed)
    initial_network(config, splits.train.classes, initial)  # refuses other classes
    start = quantized_start(config, initial, progress)
    return trainer.train(
        config, folder, start=start, initial=initial, splits=splits, force=force, progress=progress
    )


def quantized_start(
    config: TrainingConfig, initial: Checkpoint, progress: Progress = silent
) -> QuantizedStart:
    """Equalise and calibrate the network of `config.init` on images of `config.data`."""
    data = digits_folder() if config.data == DIGITS else Path(config.data)
    chosen = config.preprocessing or Preprocessing.standard(config.image_size)
    source = read_source(
        initial, image_size=config.image_size, stated=settings_of(chosen), calibration_data=data
    )  # fmt: skip
    known = source.checkpoint.preprocessing
    if known is not None and known.image_size != config.image_size:
        raise TrainingError(
            f"{config.init} takes images of {size_text(known.image_size)} pixels, not "
            f"{size_text(config.image_size)}",
            f"add --image-size {size_text(known.image_size)}",
        )
    network = source.checkpoint.network()
    preprocessing = source.preprocessing
    classifier = Classifier(network, preprocessing)
    reference = TorchClassifier(classifier, preprocessing)
    check = check_network(reference, source, config.seed)
    for warning in shift_warnings(check, source) + label_warnings(
        check, source, labels_are_used=True
    ):
        logger.warning("%s; %s", warning.message, warning.hint)
    model = to_onnx(classifier, preprocessing.image_size)
    calibration = calibrate(
        model, source, calibrator="auto", images=CALIBRATION_IMAGES, seed=config.seed,
        golden_digests=(), progress=progress,
    )  # fmt: skip
    recipe = calibration.recipes[Encoding.TENSORRT]
    tensors_read = quantized_inputs(recipe, calibration.model)
    return QuantizedStart(
        weights=unfold_norms(calibration.model, classifier),
        scales={
            tensor: float(symmetric_parameters(recipe.ranges[tensor], half=True).scale)
            for tensor in dict.fromkeys(tensors_read.values())
        },
        quantized_inputs=tensors_read,
    )


def quantized_inputs(recipe: QuantizationRecipe, model: ir.Model) -> dict[str, str]:
    """Return the name of the quantised tensor that each layer or pooling reads, by its module.

    Residual additions are left out: they are not modules, and training keeps them in float.
    """
    layers = {str(node.name) for node in model.graph if node.op_type in (*WEIGHTED, "MaxPool")}
    return {
        reader: edge.range_of
        for edge in recipe.edges(model)
        for reader, _ in edge.readers
        if reader in layers
    }


def unfold_norms(model: ir.Model, classifier: Classifier) -> dict[str, Tensor]:
    """Return a network's state with the graph's weights, and norms that only add its biases.

    The graph's channels are equalised, and its norms are folded into its convolutions.
    """
    weights = {
        name: np.array(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    network = classifier.network
    state = dict(network.state_dict())
    for name, convolution, norm_name, norm in normed_convolutions(network):
        ones = torch.ones(norm.num_features)
        weight = torch.from_numpy(weights[f"{name}.weight"])
        if (
            convolution is first_convolution(network)
            and classifier.normalize.channels is Channels.BGR
        ):
            weight = weight.flip(1)  # the graph's takes the channels as RGB
        state[f"{name}.weight"] = weight
        state[f"{norm_name}.bias"] = torch.from_numpy(weights[f"{name}.bias"])
        state[f"{norm_name}.weight"] = ones * (1 + norm.eps) ** 0.5
        state[f"{norm_name}.running_mean"] = torch.zeros(norm.num_features)
        state[f"{norm_name}.running_var"] = ones
    linear = {name: torch.from_numpy(weights[name]) for name in state if name.startswith("fc.")}
    return state | linear
