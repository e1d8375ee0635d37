"""A run trains its tokenizer once."""

from ldm.config.settings import ClipModel
from ldm.training.tasks.clip import run_tokenizer

CAPTIONS = ["horizontal stacked glyph with the water radical", "vertical stacked glyph, meaning forest"] * 20


MODEL = ClipModel(
    vocab_size=600, context_length=16, width=32, layers=2, heads=2, vision_width=32, vision_layers=1, vision_heads=2,
    embed_dim=16,
)  # fmt: skip


class Captioned:
    """Twenty items with one of two captions."""

    def __len__(self):
        return 20

    def caption(self, i, rng):
        return CAPTIONS[i % 2]


def test_a_run_keeps_its_first_tokenizer(tmp_path):
    first = run_tokenizer(tmp_path, MODEL, Captioned(), 0)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    CAPTIONS.append("something else entirely " * 3)
    again = run_tokenizer(tmp_path, MODEL, Captioned(), 0)
    assert again.get_vocab() == first.get_vocab()
