"""The model card of a bundle: `README.md`, in the form that model hubs show.

The questions that a card answers are those of Mitchell et al., "Model Cards for Model Reporting",
2019 (https://arxiv.org/abs/1810.03993).
"""

from __future__ import annotations

from resdeploy.images.preprocessing import ImageSize, size_text
from resdeploy.pages.blocks import Page
from resdeploy.pages.markdown import to_markdown
from resdeploy.readable_text import readable
from resdeploy.tables import markdown_cell, plural

# For each question of Mitchell et al. that no file of a bundle answers: what to ask the author.
UNKNOWN = (
    "for which use the model is intended, and for which it is not",
    "which pictures it was trained on, and who agreed to that",
    "how well it works on each group of people, places or devices that it will meet",
    "the licence of its weights",
)


def model_card(page: Page, network: str, image_size: ImageSize, classes: int) -> bytes:
    """Return the model card of a bundle as Markdown in UTF-8.

    Args:
        page: The report of the bundle, which the card ends with.
        network: Name of the architecture.
        image_size: Size of the input, in pixels.
        classes: Number of classes.
    """
    name = markdown_cell(page.title)
    unknown = "\n".join(f"* {question}" for question in UNKNOWN)
    text = f"""---
library_name: resdeploy
pipeline_tag: image-classification
tags: [onnx, image-classification, quantization]
---
# {name}

An image classifier ({markdown_cell(network)}) for pictures of {size_text(image_size)} pixels and
{plural(classes, "class")}; `labels.txt` names them. The figures below were measured by the export.

## Use

```sh
resdeploy verify BUNDLE           # the same logits on this machine?
resdeploy predict BUNDLE PICTURE
resdeploy serve BUNDLE
```

## Not stated

The export does not know these; ask the author of the model:

{unknown}

{to_markdown(page)}"""
    return readable(text, keep="\n").encode()
