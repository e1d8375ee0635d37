"""Reading glyphs: PP-OCRv6 (small, recognition only) as packaged by rapidocr, run through onnxruntime directly.

One glyph at a time, not a line of text: the image is padded with white by an eighth on each side, scaled to the
network's height of 48, and set at the left of a white strip 96 wide. Measured on 128-pixel Noto Sans SC: 96.1% of the
6,680 commonest characters in its dictionary are read correctly, 58% of the rarer ones; wrong labels and noise give 0%.

A confidence alone proves little: the network was never trained to refuse, and now and then it is sure of an image of
noise. It means something for images that look like glyphs, beside the same number for real glyphs.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm.utils.errors import UserError

HEIGHT, WIDTH = 48, 96
INSTALL = "install the extra with pip install 'ldm[eval]'"
BLANK = 0  # class 0 of the CTC head: 'no character'


class OcrResult(NamedTuple):
    """What is read in n images."""

    texts: list[str]  # one character each
    confidences: np.ndarray  # float32 (n,), in [0, 1]


class GlyphReader:
    """The OCR, for single glyphs.

    Args:
        threads: CPU threads; more than 2 do not help with images this small.
    Raises: UserError when rapidocr or onnxruntime is not installed.
    """

    def __init__(self, threads: int = 1):
        runtime, self.path = _find()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = min(max(threads, 1), 2)
        options.inter_op_num_threads = 1
        self._open = partial(runtime.InferenceSession, sess_options=options, providers=["CPUExecutionProvider"])
        self._session = self._open(str(self.path))
        self._input = self._session.get_inputs()[0].name
        characters = self._session.get_modelmeta().custom_metadata_map["character"].split("\n")
        self.characters: list[str] = ["", *characters, " "]  # by class index: blank first, the space last
        self.known = frozenset(characters)  # what it can read at all

    def read(self, images: np.ndarray, batch_size: int = 32) -> OcrResult:
        """Read each image as one character.

        Args:
            images: uint8 (n, h, w) or (n, h, w, 1), dark ink on white, one glyph filling each image.
            batch_size: images per run of the network.
        Returns: the characters and their probabilities: the largest softmax value over time among the classes that
            are not blank.
        Raises: UserError for another dtype or shape.
        """
        indices, confidences = [], []
        for strips in _batches(images, batch_size):
            scores = self._session.run(None, {self._input: strips})[0].max(axis=1)  # (n, classes)
            scores[:, BLANK] = 0
            best = scores.argmax(axis=1)
            indices += best.tolist()
            confidences += scores[np.arange(len(best)), best].tolist()
        return OcrResult([self.characters[i] for i in indices], np.array(confidences, dtype=np.float32))

    def embed(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """The input of the network's last layer for each image, averaged over its width: float32 (n, d).

        Args: as of `read`.
        """
        return np.concatenate(
            [self._inner.run(None, {self._input: strips})[-1].mean(axis=1) for strips in _batches(images, batch_size)]
        )

    @cached_property
    def _inner(self):
        """The same network with the input of its last matrix product, (n, time, d), as one more output."""
        import onnx

        model = onnx.load(str(self.path))
        last = [node for node in model.graph.node if node.op_type == "MatMul"][-1]
        model.graph.output.append(onnx.ValueInfoProto(name=last.input[0]))
        return self._open(model.SerializeToString())

    @cached_property
    def digest(self) -> str:
        """Which network this is: the first 16 digits of the sha256 of its file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def _find():
    """The onnxruntime module and the path of the network, without importing rapidocr itself (it is slow to import)."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"the OCR needs onnxruntime and rapidocr: {INSTALL}") from error
    package = importlib.util.find_spec("rapidocr")
    folders = [Path(p) for p in package.submodule_search_locations or []] if package is not None else []
    models = [path for folder in folders for path in sorted(folder.glob("models/*_rec_small.onnx"))]
    if not models:
        raise UserError(f"the OCR needs rapidocr with its packaged model: {INSTALL}")
    return onnxruntime, models[0]


def _batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The network's inputs, `size` at a time. Raises: UserError for another dtype or shape."""
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim != 3:
        raise UserError(
            f"the OCR reads uint8 images (n, h, w), got {images.dtype} {images.shape}: make them grey 0..255"
        )
    for start in range(0, len(images), size):
        yield np.stack([_strip(image) for image in images[start : start + size]])


def _strip(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w) to the network's input, float32 (3, 48, 96) in [-1, 1]."""
    height, width = image.shape
    pad = max(height, width) // 8
    page = np.pad(image, pad, constant_values=255)
    shrinks = min(page.shape) >= HEIGHT
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    small = Image.fromarray(page).resize((HEIGHT, HEIGHT), method)
    strip = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    strip[:, :HEIGHT] = np.asarray(small)
    return np.repeat((strip[None] / 255.0 - 0.5) / 0.5, 3, axis=0).astype(np.float32)
