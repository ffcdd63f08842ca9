"""The record of a run, `state.json`: everything but the tensors that a run needs to be resumed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resdeploy.errors import DataError, TrainingError
from resdeploy.filesystem import read_limited, sha256
from resdeploy.images.class_folders import HeldOut, names_digest
from resdeploy.json_documents import MAX_BYTES, jsonable, parse, strict_json, write_document
from resdeploy.result_files.provenance import command_line
from resdeploy.train.config import DIGITS, TrainingConfig
from resdeploy.train.data.dataset import DataSplits, read_splits
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.initialization import InitialNetwork
from resdeploy.train.model.architecture import Architecture

STATE_JSON = "state.json"
FORMAT = 4  # of `state.json` and `state.safetensors`; format 3 had no command


@dataclass(frozen=True, slots=True, kw_only=True)
class DataIdentity:
    """The facts by which a run recognises its data, also in another place."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of the folders."""
    images: dict[str, int]
    """Number of images, by split."""
    sha256: dict[str, str]
    """SHA-256 of the names and classes of the files, by split."""
    held_out: HeldOut | None = None
    """None if the data has validation images of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The settings of a run, its data and its network."""

    id: str
    """Random number, which the run's states repeat."""
    command: str
    """Command that began the run."""
    config: TrainingConfig
    """Settings with absolute paths; `config.init` is not read again."""
    data: DataIdentity
    architecture: Architecture
    labels: tuple[str, ...]
    """Names of the network's outputs, in their order."""
    outputs: tuple[int, ...]
    """Output of each class of the data."""
    teacher_sha256: str | None
    """SHA-256 of the file with the teacher's weights; None without distillation."""

    @classmethod
    def new(
        cls,
        config: TrainingConfig,
        data: DataIdentity,
        initial: InitialNetwork,
        teacher: bytes | None,
    ) -> RunRecord:
        """Return the record of a new run; `teacher` is the file with the teacher's weights."""
        return cls(
            id=secrets.token_hex(8),
            command=command_line(),
            config=config,
            data=data,
            architecture=initial.network.architecture,
            labels=initial.labels,
            outputs=initial.outputs,
            teacher_sha256=None if teacher is None else sha256(teacher),
        )


def read_run_data(
    config: TrainingConfig, run: Path, resumed: RunRecord | None, splits: DataSplits | None = None
) -> tuple[DataSplits, DataIdentity]:
    """Return the images of the run in the folder `run` and their identity.

    A run that is not resumed has no record; `splits` are its images if they were read before.

    Raises:
        DataError: The images or their names cannot be used, or are not those of the resumed run.
    """
    data = config.data
    folder = digits_folder() if data == DIGITS else Path(data)
    try:
        splits = splits or read_splits(folder, config.seed)
    except DataError as error:
        hint = f"if the data has moved: resdeploy train DATA --resume {run}"
        raise DataError(str(error), hint if resumed else error.hint) from error
    identity = identify_data(folder, splits, config.seed)
    if resumed is not None:
        check_same_data(identity, resumed.data, data, run)
    return splits, identity


def identify_data(folder: Path, splits: DataSplits, seed: int = 0) -> DataIdentity:
    """Return the identity of the data in `folder`, held out with `seed` if it has no `val`."""
    parts = {"train": splits.train, "val": splits.val}
    digests = {name: names_digest(part, folder) for name, part in parts.items()}
    return DataIdentity(
        classes=splits.train.classes,
        images={name: len(part.files) for name, part in parts.items()},
        sha256=digests,
        held_out=HeldOut(seed=seed, sha256=digests["val"]) if splits.held_out else None,
    )


def check_same_data(found: DataIdentity, expected: DataIdentity, data: str, run: Path) -> None:
    """Check that the data in the folder `data` is that of the run in the folder `run`.

    Raises:
        DataError: Classes, numbers of images or names of files differ.
    """
    new = [name for name in found.classes if name not in expected.classes]
    gone = [name for name in expected.classes if name not in found.classes]
    differences = [
        *([f"lacks the {_listed(gone)}"] if gone else []),
        *([f"has the additional {_listed(new)}"] if new else []),
    ]
    if not differences and found.classes != expected.classes:
        differences = ["has the classes in another order"]
    for split, count in expected.images.items() if not differences else ():
        if found.images[split] != count:
            differences.append(f"has {found.images[split]} images in {split}, not {count}")
        elif found.sha256[split] != expected.sha256[split]:
            differences.append(f"has files with other names or classes in {split}")
    if differences:
        raise DataError(
            f"this is not the data of {run}: {data} {' and '.join(differences)}",
            f"name the folder of its data: resdeploy train DATA --resume {run}; or start a new run",
        )


def save_record(folder: Path, record: RunRecord) -> None:
    """Write `state.json`."""
    document = {"format": FORMAT, **jsonable(record)}
    write_document(folder / STATE_JSON, document | {"architecture": record.architecture.to_json()})


def load_record(folder: Path) -> RunRecord:
    """Load `state.json`.

    Raises:
        TrainingError: The file is missing or damaged, or of another version of resdeploy.
    """
    path = folder / STATE_JSON
    if not path.is_file():
        raise TrainingError(
            f"{folder} cannot be resumed: it has no {STATE_JSON}", "give the path of a run folder"
        )
    try:
        document = strict_json(read_limited(path, MAX_BYTES, TrainingError, "start a new run"))
        version = document.get("format", 1)
        if version == FORMAT:
            return RunRecord(
                id=parse(str, document["id"]),
                command=parse(str, document["command"]),
                config=TrainingConfig.from_json(document["config"]),
                data=parse(DataIdentity, document["data"]),
                architecture=Architecture.from_json(document["architecture"]),
                labels=parse(tuple[str, ...], document["labels"]),
                outputs=parse(tuple[int, ...], document["outputs"]),
                teacher_sha256=document["teacher_sha256"],
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is damaged: {error}", "start a new run") from error
    raise other_format(path, version)


def other_format(path: Path, found: object) -> TrainingError:
    """Return the error for a file of a run in another format than this version writes."""
    return TrainingError(
        f"{path} has format {found}, and this version of resdeploy reads format {FORMAT}",
        "resume the run with the version that wrote it, or start a new run",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    noun = "class" if len(names) == 1 else "classes"
    return f"{noun} {', '.join(map(repr, names[:3]))}{more}"
