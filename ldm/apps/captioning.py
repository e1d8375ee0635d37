"""`ldm data caption`: captions by an image-to-text model of transformers, a .txt beside each image that has none.

A model is checked as all that comes from others: weights are safetensors, no file names code, and what the settings
describe is no larger than the weights beside them. Written files are never replaced, so a run that was interrupted
resumes where it stopped.
"""

import logging
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image

from ldm.config.settings import FileOptions
from ldm.formats.captions import METADATA
from ldm.formats.decode_workers import map_pictures
from ldm.formats.decoding import ImageError
from ldm.formats.folder import FolderSource, is_image
from ldm.formats.layout import paired
from ldm.formats.records import Sample, clean_caption
from ldm.formats.safe_tree import Tree
from ldm.pipelines.model_folder import HUB_ID
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.hub_client import pull
from ldm.utils.terminal import counted
from ldm.utils.untrusted_files import check_code, check_files, check_settings, count, read_json

log = logging.getLogger(__name__)
EXAMPLE = "Salesforce/blip-image-captioning-base"
CHAT_PROMPT = "Describe this image in one sentence."  # for models that answer questions
SIDE = 1024  # pixels of the longer side that a model is given at most
FILES = [
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "chat_template.json", "chat_template.jinja"),
    *("model*.safetensors", "model.safetensors.index.json"),
]


@dataclass(frozen=True)
class Wording:
    """What is asked of the model, and what stands before its answer: "trigger, prefix answer"."""

    prompt: str = ""
    prefix: str = ""
    trigger: str = ""
    max_tokens: int = 60

    def caption(self, answer: str) -> str:
        text = clean_caption(answer)
        parts = [part for part in (clean_caption(self.trigger), clean_caption(f"{self.prefix} {text}")) if part]
        return ", ".join(parts) if text else ""


class Captioner:
    """An image-to-text model with its processor. Raises: UserError: if it is none, or cannot be read."""

    def __init__(self, path_or_id: str, device: str | torch.device | None = None):
        folder = find_model(path_or_id)
        model_class, config = _network(folder, path_or_id)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.dtype = torch.bfloat16 if half else torch.float32
        try:
            options = {"config": config, "use_safetensors": True, "local_files_only": True, "dtype": self.dtype}
            self.model = model_class.from_pretrained(folder, **options).eval().to(self.device)
            self.process, self.tokenizer = _processor(folder)
        except Exception as error:  # transformers has many exceptions for a broken file
            raise UserError(f"the model {path_or_id} cannot be read: {_first_line(error)}") from error

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], wording: Wording) -> list[str]:
        """The model's answers for RGB images, one each, by greedy decoding."""
        limits = {"max_new_tokens": wording.max_tokens, "num_beams": 1, "do_sample": False}
        try:
            inputs = self._inputs(images, wording.prompt).to(self.device, self.dtype)
            tokens = self.model.generate(**inputs, **limits)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            way = "" if wording.prompt else "; perhaps it wants a --prompt"
            raise UserError(f"the model does not take these images: {_first_line(error)}{way}") from error
        if self._chats:  # these repeat the question before the answer
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    @property
    def _chats(self) -> bool:
        return bool(getattr(self.process, "chat_template", None))

    def _inputs(self, images: Sequence[Image.Image], prompt: str) -> Any:
        if self._chats:
            question = {"type": "text", "text": prompt or CHAT_PROMPT}
            asked = [[{"role": "user", "content": [{"type": "image", "image": image}, question]}] for image in images]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return self.process.apply_chat_template(asked, processor_kwargs={"padding": True}, **options)
        text = {"text": [prompt] * len(images), "padding": True} if prompt else {}
        return self.process(images=list(images), return_tensors="pt", **text)


def find_model(path_or_id: str) -> Path:
    """The folder of a model: one here, or a snapshot of the Hub's "user/name" or "user/name@revision"."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(path_or_id):
        raise UserError(f"there is no folder {path_or_id}: give one, or a Hub id such as {EXAMPLE}")
    repo_id, _, revision = path_or_id.partition("@")
    return pull(repo_id, revision or None, FILES)


def _network(folder: Path, name: str) -> tuple[type[Any], Any]:
    """The class of a model folder, and its settings, once they are such as may be opened."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    check_files(folder, {"": folder})
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{name} has no *.safetensors; other formats of weights are not read")
    settings = check_settings(folder / "config.json")
    for file in folder.glob("*.json"):  # processors and tokenizers may name code too
        if not file.name.endswith(".index.json") and file.name not in ("tokenizer.json", "vocab.json"):
            check_code(file, read_json(file))
    kind = settings.get("model_type")
    if not isinstance(kind, str) or (found := _class_of(kind)) is None:
        raise UserError(f"{name} is of type {kind!r}, which is no image-to-text model of transformers; try {EXAMPLE}")
    try:
        config = CONFIG_MAPPING[kind].from_dict(settings)
        with torch.device("meta"):  # takes no memory
            size = sum(weight.numel() for weight in found(config).parameters())
    except Exception as error:
        raise UserError(f"the settings of {name} describe no model: {_first_line(error)}") from error
    if size > 2 * (there := count(folder)):  # tied weights are there once
        raise UserError(f"the settings of {name} describe a model of {size:,} weights; the files hold {there:,}")
    return found, config


def _class_of(kind: str) -> type[Any] | None:
    """The class that generates text from images for a `model_type`."""
    import transformers
    from transformers.models.auto import modeling_auto

    names = dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    older = getattr(modeling_auto, "MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES", {})  # transformers 4
    entry = names.get(kind) or dict(older).get(kind)
    entry = entry or {"vision-encoder-decoder": "VisionEncoderDecoderModel"}.get(kind)
    return getattr(transformers, entry if isinstance(entry, str) else entry[0]) if entry else None


def _processor(folder: Path) -> tuple[Any, Any]:
    """What turns images and a prompt into inputs, and the tokenizer that reads the answer."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

    process = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if isinstance(process, ProcessorMixin):
        tokenizer = process.tokenizer
    else:  # older models have two halves that know nothing of each other
        process = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "left"  # answers begin right after the question
    return process, tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


class _Chosen:
    """Some samples of a folder, as a `Source`."""

    def __init__(self, folder: FolderSource, names: set[str]):
        self.notes: list[str] = []
        self.captions_from: list[str] = []
        self._folder = folder
        self.samples: list[Sample] = [sample for sample in folder.samples if sample.id in names]

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]:
        return ((index, self._folder.read(sample.id)) for index, sample in enumerate(self.samples))

    def read_from(self) -> tuple[list[Path], str]:
        return [], ""


def missing_captions(tree: Tree) -> dict[str, str]:
    """Image -> the caption file it should have, for all images of a folder that have none.

    Raises: UserError: if a table has the captions of this folder, which would not be read from .txt files.
    """
    images = [name for name in tree.files if is_image(name)]
    if not images:
        raise UserError(f"{tree.root} holds no images")
    if tables := [name for name in tree.files if PurePosixPath(name).name.lower() in METADATA]:
        raise UserError(
            f"{tree.root / tables[0]} has the captions of this folder, and .txt files beside it are not read; "
            "move it away to have captions written"
        )
    pairs = paired([name for name in tree.files if not name.lower().endswith(".json")], images)
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in images}
    shared = Counter(stems.values())  # a.png beside a.jpg
    return {name: f"{name if shared[stem] > 1 else stem}.txt" for name, stem in stems.items() if name not in pairs}


def caption_folder(root: Path, load: Callable[[], Captioner], wording: Wording, batch_size: int = 8) -> dict[str, int]:
    """Write a caption beside each image of a folder that has none, batch by batch.

    `load` gives the model, and is not called if there is nothing to do.

    Returns: how many images were "written", had a caption ("kept"), could not be read ("unreadable"), or got no words
        from the model ("empty").
    Raises: UserError: for a folder without images, one that cannot be written, or a model that fails.
    """
    tree = Tree(root)
    targets = missing_captions(tree)
    source = _Chosen(FolderSource(tree, FileOptions(caption_column="")), set(targets))
    counts = Counter(kept=sum(map(is_image, tree.files)) - len(targets), written=0, unreadable=0, empty=0)
    captioner = load() if targets else None
    results = counted(map_pictures(source, "shrink", side=SIDE), "captioning", len(source.samples))
    while batch := list(islice(results, batch_size)):
        images = []
        for index, data in batch:
            if isinstance(data, ImageError):
                counts["unreadable"] += 1
                log.warning("%s: %s", source.samples[index].id, data)
            else:
                images.append((source.samples[index].id, _image(data)))
        answers = captioner([image for _, image in images], wording) if captioner and images else []
        for (name, _), answer in zip(images, answers, strict=True):
            counts[_write(root / targets[name], wording.caption(answer))] += 1
    return dict(counts)


def _image(data: bytes) -> Image.Image:
    size = struct.unpack_from("<II", data)
    assert len(data) == 8 + 3 * math.prod(size)
    return Image.frombytes("RGB", size, data[8:])


def _write(path: Path, caption: str) -> str:
    """Write a caption where there is no file yet; which of the counts it belongs to."""
    if not caption:
        return "empty"
    if path.exists():  # somebody wrote it meanwhile
        return "kept"
    try:
        atomic_write(path, f"{caption}\n".encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return "written"
