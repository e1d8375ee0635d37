"""The OCR reads rendered characters as well as it is said to, and never by chance."""

import numpy as np
import pytest

from ldm.data.glyphs.rendering import cached_glyphs, style_font
from ldm.evaluation import ocr
from ldm.utils.errors import UserError

COMMON = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家"
)


@pytest.fixture(scope="module")
def reader():
    pytest.importorskip("rapidocr")
    return ocr.GlyphReader()


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    pytest.importorskip("pylopdf_fonts_zh_cn")
    folder, _ = cached_glyphs(style_font("hei"), COMMON, 64, tmp_path_factory.mktemp("cache"))
    return np.load(folder / "images.npy")


@pytest.fixture(scope="module")
def answer(reader, glyphs):
    return reader.read(glyphs)


def test_reads_common_characters(answer):
    chars, confidences = answer
    right = np.array([a == b for a, b in zip(chars, COMMON, strict=True)])
    assert right.mean() >= 0.9
    assert confidences[right].mean() > 0.9
    assert confidences.dtype == np.float32 and ((confidences >= 0) & (confidences <= 1)).all()


def test_shuffled_labels_are_never_right(answer):
    moved = COMMON[1:] + COMMON[:1]
    assert not any(a == b for a, b in zip(answer[0], moved, strict=True))


def test_batches_do_not_change_the_answer(reader, glyphs, answer):
    chars, confidences = reader.read(glyphs[:6, :, :, None], batch_size=4)
    assert chars == answer[0][:6]
    np.testing.assert_allclose(confidences, answer[1][:6], atol=1e-4)


def test_dictionary(reader):
    assert len(reader.characters) == 18710 and reader.characters[0] == ""
    assert set(COMMON) <= reader.known


def test_refuses_floats_and_colour(reader):
    for images in (np.zeros((2, 64, 64)), np.zeros((2, 64, 64, 3), np.uint8)):
        with pytest.raises(UserError, match="uint8"):
            reader.read(images)


def test_no_pictures_give_no_characters(reader):
    chars, confidences = reader.read(np.zeros((0, 64, 64), np.uint8))
    assert chars == [] and confidences.shape == (0,)


def test_missing_package_names_the_extra(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ocr.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ldm\[eval\]"):
        ocr.GlyphReader()


def test_features_are_those_that_the_reading_is_made_of(reader):
    """The last layer is linear: the mean of its logits over time is that layer of the mean features."""
    import onnx
    from onnx import numpy_helper

    images = np.stack([np.full((64, 64), 255, np.uint8), np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))])
    features = reader.embed(images)
    model = onnx.load(str(reader.path))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    product = [node for node in model.graph.node if node.op_type == "MatMul"][-1]
    assert features.shape == (2, len(weights[product.input[1]])) and features.dtype == np.float32
    logits = features @ weights[product.input[1]]
    model.graph.output.append(onnx.ValueInfoProto(name=product.output[0]))
    session = reader._open(model.SerializeToString())
    from ldm.evaluation.ocr import _batches

    direct = session.run(None, {reader._input: next(_batches(images, 2))})[-1].mean(axis=1)
    np.testing.assert_allclose(logits, direct, rtol=1e-3, atol=1e-3)
    assert np.abs(features[0] - features[1]).max() > 0.1
    assert len(reader.digest) == 16
