"""Image-to-text models of a few thousand weights, as they lie on the Hub, that only say "red" and "square"."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>", "USER:", "what?", "a", "photo", "of", "red", "square"]
RED, SQUARE = WORDS.index("red"), WORDS.index("square")
TEXT = {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
LAYERS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": 32, "patch_size": 16}
SIZE = {"height": 32, "width": 32}
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def tokenizer() -> BertTokenizer:
    words = {word: number for number, word in enumerate(WORDS)}
    return BertTokenizer(vocab=words, extra_special_tokens={"image_token": "<image>"}, do_lower_case=False)


def blip(folder: Path) -> Path:
    """Says "red" of everything."""
    text = {**TEXT, **LAYERS, "encoder_hidden_size": 16, "max_position_embeddings": 64, "sep_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=16, image_text_hidden_size=16)
    model = BlipForConditionalGeneration(config)
    model.text_decoder.cls.predictions.bias.data[RED] = 100
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer()).save_pretrained(folder)
    return folder


def vision_encoder_decoder(folder: Path) -> Path:
    """Says "square" of everything; image processor and tokenizer know nothing of each other."""
    decoder = {**TEXT, "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    decoder |= {"add_cross_attention": True, "is_decoder": True}
    config = VisionEncoderDecoderConfig(
        encoder={**VISION, "model_type": "vit"}, decoder=decoder, decoder_start_token_id=2, pad_token_id=0
    )
    model = VisionEncoderDecoderModel(config)
    last = model.decoder.transformer.ln_f
    last.weight.data.zero_()
    last.bias.data.fill_(1)
    model.decoder.transformer.wte.weight.data[SQUARE] = 10
    model.save_pretrained(folder)
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """Chats: says only "red" and "square" in answer to a question."""
    vision = {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}
    text = {**TEXT, **LAYERS, "model_type": "llama", "max_position_embeddings": 128, "num_key_value_heads": 2}
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config)
    head = model.lm_head.weight.data
    head[SQUARE] = 100 * torch.randn(16)
    head[RED] = -head[SQUARE]  # one of the two has the largest logit, whatever the state is
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size=SIZE, crop_size=SIZE),
        tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder
