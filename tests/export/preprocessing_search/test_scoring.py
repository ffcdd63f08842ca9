"""The log loss of candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from resdeploy.export.preprocessing_search.scoring import TEMPERATURES, Scorer
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.progress import silent
from resdeploy.train.model.resnet import Classifier
from tests.samples import SIZE, make_classifier, write_images


def test_the_loss_is_torchs_at_the_best_temperature(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 7, seed=0)
    files = sorted(tmp_path.rglob("*.png"))
    classes = {path: n % 3 for n, path in enumerate(files)}
    network = make_classifier().network
    candidate = Preprocessing(image_size=SIZE)
    scorer = Scorer(network, files, len(files), silent, classes)
    scorer.extend([candidate], len(files))

    pixels = np.stack([load_image(path, candidate) for path in files])
    with torch.inference_mode():
        logits = Classifier(network, candidate).eval()(torch.from_numpy(pixels))
    labels = torch.tensor([classes[path] for path in files])
    expected = min(
        (F.cross_entropy(logits / t, labels, reduction="none").numpy() for t in TEMPERATURES),
        key=np.mean,
    )
    # Single precision gives logits of about 10 an error of 1e-6; batches differ in summation order.
    np.testing.assert_allclose(scorer.scores[candidate].losses(len(files)), expected, atol=1e-4)
