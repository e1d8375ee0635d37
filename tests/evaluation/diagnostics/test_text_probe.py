"""The check of unseen prompts, on readings that are given."""

from types import SimpleNamespace

import pytest
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.evaluation.diagnostics.text_probe import check_unseen_prompts
from ldm.evaluation.glyphs import text_probe


def context_of(source):
    small = CLIPTextConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    pipeline = SimpleNamespace(text_encoder=CLIPTextModel(small), tokenizer=None)
    settings = SimpleNamespace(data=SimpleNamespace(source=source))
    return SimpleNamespace(settings=settings, pipeline=pipeline, unconditional=False)


@pytest.mark.parametrize("radical, status", [(0.9, "ok"), (0.3, "warn")])
def test_what_cannot_be_read_is_a_warning(radical, status, monkeypatch):
    readings = text_probe.Readings(nearest_radical=0.2, nearest_layout=1.0, radical=radical, layout=1.0)
    monkeypatch.setattr(text_probe, "probe", lambda encoder, tokenizer: readings)
    found = check_unseen_prompts(context_of("glyphs"))
    assert found.status == status and f"{radical:.0%} of the radicals" in found.text
    assert ("hard_negatives" in found.advice) == (status == "warn")


def test_other_data_have_no_such_prompts():
    assert check_unseen_prompts(context_of("photos")).status == "ok"
