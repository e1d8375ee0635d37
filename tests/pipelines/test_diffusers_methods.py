"""What a diffusers user types: the same call gives the same images here and there, and the same kinds of errors."""

import inspect
import io

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from safetensors.torch import load_file, save_file
from tiny_model import COSINE, FLOW, tiny_folder, tiny_lora, tiny_pipeline

import ldm
from ldm.models.lora import Adapter, save_lora
from ldm.pipelines.adapter_weights import weight_of, weights_from
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
PROMPTS = ["water", "fire on the left"]


def standard(pipeline) -> StableDiffusionPipeline:
    """diffusers' own pipeline of the same components."""
    made = StableDiffusionPipeline(
        **pipeline.components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def ours():
    return tiny_pipeline(COSINE, pooled_text=False)


@pytest.fixture(scope="module")
def theirs(ours):
    return standard(ours)


def draw(pipeline, **options):
    settings = {"prompt": PROMPTS, "latents": LATENTS, "num_inference_steps": 4, "guidance_scale": 3.0}
    return pipeline(**settings | {"output_type": "pt"} | options).images


def assert_same(ours, theirs, **options):
    expected = draw(theirs, **options)
    torch.testing.assert_close(draw(ours, **options), expected, atol=2e-3, rtol=0)
    return expected


# ---- the call -------------------------------------------------------------------------------------------------------


def test_the_package_offers_the_pipeline():
    assert ldm.Pipeline is Pipeline


def test_arguments_have_the_names_and_the_order_of_diffusers():
    known = [
        name for name in inspect.signature(StableDiffusionPipeline.__call__).parameters if "ip_adapter" not in name
    ]
    known.remove("kwargs")
    found = inspect.signature(Pipeline.__call__).parameters
    assert list(found)[: len(known)] == known
    assert all(each.kind is each.KEYWORD_ONLY for each in list(found.values())[len(known) :])


def test_a_negative_prompt_may_still_be_the_second_argument(ours):
    options = {"latents": LATENTS[:1], "num_inference_steps": 2, "output_type": "pt"}
    assert torch.equal(ours("a", "b", **options).images, ours("a", negative_prompt="b", **options).images)


def test_output_has_the_forms_of_diffusers(ours):
    options = {"prompt": "a", "seed": 0, "num_inference_steps": 1, "output_type": "np"}
    output = ours(**options)
    assert output[0] is output.images is output["images"] and output.to_tuple() == (output.images,)
    images, found_unsafe = ours(**options, return_dict=False)
    assert np.array_equal(images, output.images) and found_unsafe is None is output.nsfw_content_detected


def test_embeddings_in_place_of_texts(ours, theirs):
    embeds, negative = ours.encode_prompt(PROMPTS), ours.encode_prompt(["air", ""])
    given = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
    expected = assert_same(ours, theirs, **given)
    torch.testing.assert_close(draw(ours, negative_prompt=["air", ""]), expected, atol=2e-3, rtol=0)
    latents = LATENTS.repeat_interleave(2, 0)
    assert_same(ours, theirs, prompt=None, prompt_embeds=embeds, num_images_per_prompt=2, latents=latents)


def test_clip_skip_leaves_out_the_last_layers_before_the_normalization(ours):
    encoder, ids = ours.text_encoder, ours.tokenizer("water", padding="max_length", return_tensors="pt").input_ids
    states = encoder(ids, output_hidden_states=True).hidden_states
    for skip in (0, 1, 2):
        expected = encoder.final_layer_norm(states[-1 - skip])
        torch.testing.assert_close(ours.encode_prompt("water", clip_skip=skip), expected)
    assert torch.equal(ours.encode_prompt("water", clip_skip=0), ours.encode_prompt("water"))
    by_hand = draw(ours, prompt=None, prompt_embeds=ours.encode_prompt(PROMPTS, clip_skip=1))
    assert torch.equal(draw(ours, clip_skip=1), by_hand)


def test_eta_is_the_noise_of_ddim(ours):
    ddim = Pipeline.from_pipe(ours, scheduler=DDIMScheduler.from_config(ours.scheduler.config, clip_sample=False))
    pair = ddim, standard(ddim)
    plain = assert_same(*pair)
    with_noise = [draw(one, eta=1.0, generator=torch.Generator().manual_seed(3)) for one in pair]
    torch.testing.assert_close(*with_noise, atol=2e-3, rtol=0)
    assert (with_noise[0] - plain).abs().max() > 0.01


def test_own_timesteps_and_sigmas(ours, theirs):
    assert_same(ours, theirs, timesteps=[900, 500, 100])
    euler = Pipeline.from_pipe(ours, scheduler=EulerDiscreteScheduler.from_config(ours.scheduler.config))
    assert_same(euler, standard(euler), sigmas=[20.0, 3.0, 0.5, 0.0])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc"])
def test_a_flow_takes_times_whatever_the_scheduler(sampler):
    pipeline = tiny_pipeline(FLOW.model_copy(update={"shift": 2.0}))
    usual, count = draw(pipeline, sampler=sampler), 4
    plan = pipeline.plan(PROMPTS, latents=LATENTS, sampler=sampler)
    plan.scheduler.set_timesteps(count)
    torch.testing.assert_close(
        draw(pipeline, sampler=sampler, timesteps=plan.scheduler.timesteps.tolist()), usual, atol=5e-3, rtol=0
    )
    own = np.linspace(1, 1e-3, count, endpoint=False)  # UniPC's, before the shift
    if sampler == "unipc":
        torch.testing.assert_close(draw(pipeline, sampler=sampler, sigmas=own), usual, atol=1e-5, rtol=0)
    seen = []
    draw(pipeline, sampler=sampler, sigmas=[0.8, 0.2], callback=lambda step, t, latents: seen.append(int(t)))
    assert seen == [888, 333]  # 1000 * 2 s / (1 + s)


def test_a_subclass_may_have_a_call_of_its_own(ours):
    class Few(Pipeline):
        def __call__(self, text):
            return super().__call__(text, num_inference_steps=2, seed=1, output_type="pt")

    expected = ours("water", num_inference_steps=2, seed=1, output_type="pt").images
    assert torch.equal(Few(**ours.components)("water").images, expected)


# ---- callbacks ------------------------------------------------------------------------------------------------------


def test_what_a_callback_returns_replaces_the_latents(ours, theirs):
    def halve(pipeline, step, timestep, tensors):
        assert list(tensors) == ["latents"]
        return {"latents": tensors["latents"] / 2} if step == 1 else {}

    changed = assert_same(ours, theirs, callback_on_step_end=halve)
    assert (changed - draw(ours)).abs().max() > 0.01


def test_what_a_callback_returns_replaces_the_embeddings(ours, theirs):
    other = ours.encode_prompt(["air", "earth"])

    def swap(pipeline, step, timestep, tensors):
        negative, _ = tensors["prompt_embeds"].chunk(2)
        return {"prompt_embeds": torch.cat([negative, other])} if step == 1 else {}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    changed = assert_same(ours, theirs, callback_on_step_end=swap, callback_on_step_end_tensor_inputs=names)
    assert (changed - draw(ours)).abs().max() > 1e-3


def test_a_callback_changes_guidance_and_sees_the_steps(ours, theirs):
    seen = []

    def stronger(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), pipeline.num_timesteps, pipeline.do_classifier_free_guidance))
        pipeline._guidance_scale += 1.0
        return tensors

    changed = assert_same(ours, theirs, callback_on_step_end=stronger)
    assert seen[:4] == seen[4:] and ours.guidance_scale == theirs.guidance_scale == 7.0
    assert (changed - draw(ours)).abs().max() > 1e-3
    cut = {"prompt": "water", "latents": LATENTS[:1]}
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    assert_same(ours, theirs, **cut, callback_on_step_end=cutoff)


def test_a_callback_stops_the_loop(ours, theirs):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        return tensors

    stopped = assert_same(ours, theirs, callback_on_step_end=stop)
    assert (stopped - draw(ours)).abs().max() > 1e-3
    assert torch.equal(draw(ours), draw(ours))  # and the next call runs to its end


def test_the_progress_bar_is_tqdm_with_ones_own_settings(ours):
    shown = io.StringIO()
    pipeline = Pipeline.from_pipe(ours)
    draw(pipeline)
    pipeline.set_progress_bar_config(file=shown, desc="drawing")
    draw(pipeline)
    assert "drawing: 100%" in shown.getvalue() and "4/4" in shown.getvalue()
    with pytest.raises(ValueError, match="iterable or total"):
        pipeline.progress_bar()


# ---- errors ---------------------------------------------------------------------------------------------------------

ROW = torch.zeros(1, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 18}, "height must be a multiple of 4, got 18: 16 and 20 are the nearest"),
        ({"width": "fire"}, "width must be a whole number, from 4 to 2048, got 'fire'"),
        ({"prompt": "a", "prompt_embeds": ROW}, "prompt and prompt_embeds cannot both"),
        ({"negative_prompt": "a", "negative_prompt_embeds": ROW}, "negative_prompt and negative_prompt_embeds"),
        ({"prompt": None, "prompt_embeds": ROW[0]}, r"prompt_embeds must be a tensor \(prompts, tokens, 16\)"),
        (
            {"prompt": None, "prompt_embeds": ROW[..., :8]},
            r"must be a tensor \(prompts, tokens, 16\), got \(1, 16, 8\)",
        ),
        (
            {"prompt": None, "prompt_embeds": ROW, "negative_prompt_embeds": ROW[:, :9]},
            "negative_prompt_embeds must have the shape",
        ),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 17, 16)}, "the text encoder takes 16 tokens, got 17"),
        ({"timesteps": [9, 5], "sigmas": [1.0]}, "only one of timesteps and sigmas"),
        ({"timesteps": [5, 9]}, "timesteps must be a list of falling numbers"),
        ({"timesteps": [1000]}, "timesteps must be 999 at most"),
        ({"sigmas": [0.5]}, "takes no sigmas"),
        ({"eta": 2.0}, "eta must be from 0 to 1"),
        ({"clip_skip": 3}, "clip_skip must be a whole number, from 0 to 2"),
        ({"cross_attention_kwargs": {"mask": 1}}, "cross_attention_kwargs must be"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["masks"]},
            "callback_on_step_end_tensor_inputs must be of latents",
        ),
        ({"callback_on_step_end": lambda *seen: None}, "must return its dict of tensors, got NoneType"),
    ],
)
def test_wrong_arguments_are_named(ours, options, message):
    with pytest.raises(ValueError, match=message):
        draw(ours, **{"prompt": "a", "latents": LATENTS[:1]} | options)


# ---- loading and saving ---------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_generates_the_same_there_and_here(tmp_path, ours):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").write_bytes(b"of other weights")
    (tmp_path / "notes.txt").write_text("mine")
    ours.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert torch.equal(draw(loaded), draw(ours)) and loaded.device.type == "cpu"
    assert not (tmp_path / "unet" / "model.onnx").exists() and (tmp_path / "notes.txt").read_text() == "mine"
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(again), draw(ours), atol=2e-3, rtol=0)


def test_a_variant_is_a_file_of_its_own(tmp_path, ours):
    with pytest.raises(ValueError, match="the model files of the `variant=fp16`, which .* lacks"):
        Pipeline.from_pretrained(tiny_folder(tmp_path / "plain"), variant="fp16")
    half = Pipeline.from_pipe(tiny_pipeline(COSINE, pooled_text=False), torch_dtype=torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    assert {file.name.split(".")[1] for file in (tmp_path / "half").rglob("*.safetensors")} == {"fp16"}
    loaded = Pipeline.from_pretrained(tmp_path / "half", variant="fp16", torch_dtype=torch.float16)
    assert loaded.dtype == torch.float16
    for name, weight in half.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], weight)


def test_from_pretrained_takes_what_diffusers_takes(tmp_path, ours):
    folder, unet = tiny_folder(tmp_path), tiny_pipeline().unet
    pipeline = Pipeline.from_pretrained(
        folder, unet=unet, safety_checker=None, requires_safety_checker=False, device_map="cpu", use_safetensors=True
    )
    assert pipeline.unet is unet and "disable" not in pipeline._bar
    assert Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    for options, kind in (
        ({"safety_checker": unet}, ValueError),
        ({"use_safetensors": False}, UserError),
        ({"custom_pipeline": "x"}, TypeError),
        ({"revision": "main"}, UserError),
    ):
        with pytest.raises(kind):
            Pipeline.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("options", "message"), [({"safe_serialization": False}, "safetensors"), ({"push_to_hub": True}, "ldm push")]
)
def test_what_is_not_saved_is_said(tmp_path, ours, options, message):
    with pytest.raises(ValueError, match=message):
        ours.save_pretrained(tmp_path, **options)


def test_components_go_from_one_pipeline_to_another(ours, theirs):
    assert all(Pipeline.from_pipe(theirs).components[name] is part for name, part in ours.components.items())
    assert Pipeline(**theirs.components).unet is ours.unet
    other = Pipeline.from_pipe(ours, scheduler=DDIMScheduler.from_config(ours.scheduler.config))
    assert type(other.scheduler) is DDIMScheduler and other.defaults is ours.defaults
    with pytest.raises(ValueError, match="from_pipe needs vae"):
        Pipeline.from_pipe(ours, vae=None)
    with pytest.raises(ValueError, match="safety_checker must be None"):
        Pipeline(**ours.components, safety_checker=ours.unet)
    with pytest.raises(TypeError, match="unknown argument controlnet"):
        Pipeline(**ours.components, controlnet=None)


# ---- adapters -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two adapters: of the first convolution, and of attention in both networks."""
    place = tmp_path_factory.mktemp("adapters")
    pipeline, generator = tiny_pipeline(COSINE, pooled_text=False), torch.Generator().manual_seed(5)
    names = {
        "unet": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "text_encoder": "encoder.layers.0.self_attn.q_proj",
    }
    made = {}
    for part, name in names.items():
        out, into = getattr(pipeline, part).get_submodule(name).weight.shape
        down, up = torch.randn(2, into, generator=generator), torch.randn(out, 2, generator=generator)
        made[f"{part}.{name}"] = Adapter(down, up)
    return tiny_lora(place), save_lora(made, place / "attention")


def test_adapters_do_what_they_do_in_diffusers(files):
    pytest.importorskip("peft")
    mine, reference = tiny_pipeline(COSINE, pooled_text=False), standard(tiny_pipeline(COSINE, pooled_text=False))
    plain = draw(mine)
    for each in (mine, reference):
        each.load_lora_weights(files[0])
        each.load_lora_weights(files[1], adapter_name="attention")
    assert mine.get_active_adapters() == ["attention"] == reference.get_active_adapters()
    assert mine.get_list_adapters()["unet"] == ["default_0", "attention"] == reference.get_list_adapters()["unet"]
    seen = [plain, assert_same(mine, reference)]
    seen.append(assert_same(mine, reference, cross_attention_kwargs={"scale": 0.5}))
    calls = (
        ("set_adapters", ["default_0", "attention"], [0.3, 0.6]),
        ("fuse_lora", ["unet", "text_encoder"], 1.0, False, ["attention", "default_0"]),
        ("unfuse_lora",),
        ("set_adapters", "default_0", 0.7),
        ("fuse_lora",),
        ("unfuse_lora",),
        ("disable_lora",),
        ("enable_lora",),
        ("set_adapters", "attention"),
        ("delete_adapters", "default_0"),
        ("delete_adapters", "attention"),
        ("unload_lora_weights",),
    )
    for name, *args in calls:
        for each in (mine, reference):
            getattr(each, name)(*args)
        seen.append(assert_same(mine, reference))
        assert mine.num_fused_loras == reference.num_fused_loras and mine.fused_loras == reference.fused_loras
    assert all((seen[i] - seen[0]).abs().max() > 0.01 for i in (1, 2, 3, 4, 5))
    assert torch.equal(draw(mine), plain)  # the same bits
    assert mine.get_active_adapters() == [] and mine.get_list_adapters() == {}
    mine.load_lora_weights(files[1])  # in diffusers the text encoder's would have the scale 0.5 of the call above
    torch.testing.assert_close(draw(mine), seen[1], atol=2e-3, rtol=0)


def test_what_is_fused_stays_when_the_adapters_are_unloaded(files):
    fused = tiny_pipeline(COSINE, pooled_text=False)
    plain, empty = draw(fused), fused.digest
    fused.load_lora_weights(load_file(files[1]))
    loaded = draw(fused)
    assert fused.digest != empty
    fused.fuse_lora(lora_scale=0.5)
    fused.unload_lora_weights()
    by_scale = tiny_pipeline(COSINE, pooled_text=False)
    by_scale.load_lora_weights(files[1])
    assert torch.equal(draw(fused), draw(by_scale, cross_attention_kwargs={"scale": 0.5}))
    assert torch.equal(draw(by_scale), loaded) and not torch.equal(draw(fused), plain) and fused.digest != empty


LAYERS = [
    "text_encoder.encoder.layers.1.self_attn.v_proj",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    *(f"unet.up_blocks.0.attentions.{i}.transformer_blocks.0.attn2.to_v" for i in (0, 1)),
]


def test_weights_of_blocks_are_those_of_diffusers():
    pytest.importorskip("peft")
    mine, reference = tiny_pipeline(COSINE, pooled_text=False), standard(tiny_pipeline(COSINE, pooled_text=False))
    draws = torch.Generator().manual_seed(5)
    for name in ("one", "two"):
        made = {layer: [torch.randn(shape, generator=draws) for shape in shapes_of(mine, layer)] for layer in LAYERS}
        tensors = {f"{layer}.lora_{'AB'[i]}.weight": pair[i] for layer, pair in made.items() for i in (0, 1)}
        for each in (mine, reference):
            each.load_lora_weights(dict(tensors), adapter_name=name)
    seen = [draw(mine)]
    for names, weights in (
        ("one", {"text_encoder": 2, "unet": {"down": 0.2}}),
        ("one", {"unet": {"mid": 0, "up": 0.1}}),
        ("one", {"unet": {"up": {"block_0": [0.1, 2]}, "down": {"block_1": 0.5}}}),
        ("one", {"unet": 0.3}),
        (["one", "two"], [{"unet": {"up": 0}}, 0.4]),
    ):
        for each in (mine, reference):
            each.set_adapters(names, weights)
        seen.append(assert_same(mine, reference))
        mine.fuse_lora()
        torch.testing.assert_close(draw(mine), seen[-1], atol=2e-3, rtol=0)
        mine.unfuse_lora()
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(seen) for b in seen[:i])


def shapes_of(pipeline, layer: str) -> list[tuple[int, int]]:
    """Of the matrices A and B of rank 2."""
    part, _, name = layer.partition(".")
    out, into = getattr(pipeline, part).get_submodule(name).weight.shape
    return [(2, into), (out, 2)]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"unet": {"down": {"block_7": 1}}}, "unet.down.block_7: the U-Net has no such block"),
        (
            {"unet": {"up": {"block_0": [1]}}},
            "unet.up.block_0 must be a number or 2, one for each attention there, got 1",
        ),
        ({"text_encoder": {"mid": 1}}, "must name text_encoder or unet, .*got text_encoder.mid"),
        ({"vae": 1}, "must name text_encoder or unet, .*got vae"),
        ({"unet": {"mid": "much"}}, "unet.mid must be a number, got 'much'"),
    ],
)
def test_wrong_weights_of_blocks_are_named(files, weights, message):
    pipeline = tiny_pipeline(COSINE, pooled_text=False)
    pipeline.load_lora_weights(files[1], adapter_name="one")
    with pytest.raises(ValueError, match=message):
        pipeline.set_adapters("one", weights)


def test_weights_find_the_layers_of_a_file_of_kohya():
    weights = weights_from({"unet": {"up": 3, "down": {"block_1": [2]}}}, tiny_pipeline().unet)
    names = ["down_blocks_1_attentions_0_proj_in", "down_blocks_1_resnets_0_conv1", "up_blocks_0_attentions_1_proj_in"]
    assert [weight_of(f"unet.{name}", weights) for name in names] == [2, 1, 3]
    assert weight_of("unet.down_blocks.10.attentions.0.proj_in", {"": 0.5, "unet.down_blocks.1": 2}) == 0.5


def test_adapters_that_peft_trained_are_saved_for_both(tmp_path):
    peft = pytest.importorskip("peft")
    kinds = {"unet": ["to_k"], "text_encoder": ["q_proj"]}
    trained = tiny_pipeline(COSINE, pooled_text=False)
    given = {}
    for part, names in kinds.items():
        config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=names, init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            getattr(trained, part).add_adapter(config)
        given[f"{part}_lora_layers"] = peft.get_peft_model_state_dict(getattr(trained, part), adapter_name="default")
        given[f"{part}_lora_adapter_metadata"] = getattr(trained, part).peft_config["default"].to_dict()
    mine, reference = tiny_pipeline(COSINE, pooled_text=False), standard(tiny_pipeline(COSINE, pooled_text=False))
    plain = draw(mine)
    Pipeline.save_lora_weights(tmp_path, **given, is_main_process=False)
    assert not list(tmp_path.iterdir())
    Pipeline.save_lora_weights(tmp_path, **given, weight_name="mine.safetensors")
    for each in (mine, reference):
        each.load_lora_weights(tmp_path, weight_name="mine.safetensors")
    assert (assert_same(mine, reference) - plain).abs().max() > 0.01
    torch.testing.assert_close(draw(trained), draw(mine), atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="needs unet_lora_layers or text_encoder_lora_layers"):
        Pipeline.save_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        Pipeline.save_lora_weights(tmp_path, **given, safe_serialization=False)
    with pytest.raises(UserError, match="only LoRA weights"):
        Pipeline.save_lora_weights(tmp_path, {"conv_in.weight": LATENTS})


def test_adapters_leave_with_the_network_that_is_replaced(files):
    pipeline = tiny_pipeline(COSINE, pooled_text=False)
    plain = draw(pipeline)
    pipeline.load_lora_weights(files[1])
    pipeline.unet = tiny_pipeline(COSINE, pooled_text=False).unet
    assert pipeline.get_active_adapters() == [] and torch.equal(draw(pipeline), plain)


def test_wrong_adapters_are_named(files, ours, tmp_path):
    pipeline = Pipeline.from_pipe(ours)
    pipeline.load_lora_weights(files[0], adapter_name="one")
    for call, kind, message in (
        (lambda: pipeline.load_lora_weights(files[1], adapter_name="one"), ValueError, "'one' is in use"),
        (lambda: pipeline.set_adapters("two"), ValueError, "adapter 'two' not in the list of present adapters: one"),
        (lambda: pipeline.set_adapters("one", [1, 2]), ValueError, "must be one number, or as many as names"),
        (lambda: pipeline.fuse_lora(components=["unet"]), ValueError, "components must be both"),
        (lambda: pipeline.load_lora_weights(tmp_path), UserError, "no such file"),
        (lambda: pipeline.load_lora_weights({"a.lora_A.weight": LATENTS}), UserError, "only LoRA weights"),
    ):
        with pytest.raises(kind, match=message):
            call()
    pipeline.unload_lora_weights()


# ---- words, memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_learned_word_has_its_vectors_in_every_prompt(tmp_path, count):
    vectors = torch.randn(count, 16, generator=torch.Generator().manual_seed(2))
    pipeline = tiny_pipeline(COSINE, pooled_text=False)
    plain = draw(pipeline, prompt=["<new> water", "fire"])
    save_file({"<new>": vectors}, tmp_path / "learned_embeds.safetensors")
    pipeline.load_textual_inversion(tmp_path)
    names = ["<new>", *(f"<new>_{i}" for i in range(1, count))]
    rows = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer.convert_tokens_to_ids(names)]
    assert torch.equal(rows, vectors)
    learned = draw(pipeline, prompt=["<new> water", "fire"])
    assert not torch.allclose(learned[0], plain[0], atol=1e-3) and torch.equal(learned[1], plain[1])
    assert torch.equal(learned, draw(pipeline, prompt=[" ".join(names) + " water", "fire"]))
    with pytest.raises(ValueError, match="'<new>' is in the tokenizer's vocabulary"):
        pipeline.load_textual_inversion({"<new>": vectors})
    with pytest.raises(ValueError, match="width 16, got 8"):
        pipeline.load_textual_inversion({"<other>": vectors[:, :8]})
    with pytest.raises(UserError, match="must hold one token"):
        pipeline.load_textual_inversion({"<other>": vectors, "<third>": vectors})
    with pytest.raises(UserError, match="other formats are not read"):
        pipeline.load_textual_inversion("embeds.pt")


@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_needs_a_gpu(ours, method):
    with pytest.raises(RuntimeError, match=f"{method} needs a GPU"):
        getattr(ours, method)(device="cpu")


@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_weights_that_lie_elsewhere_are_brought_where_they_compute(method, monkeypatch, files):
    """The hooks with the CPU in place of a GPU: layer by layer the weights lie on the meta device in between."""
    expected, pipeline = draw(tiny_pipeline()), tiny_pipeline()
    monkeypatch.setattr(Pipeline, "_prepare_offload", lambda self, *names: torch.device("cpu"))
    getattr(pipeline, method)()
    for _ in range(2):
        torch.testing.assert_close(draw(pipeline), expected)
        assert pipeline.device.type == "cpu" and pipeline.unet.conv_in.weight.is_meta == ("sequential" in method)
    if "sequential" in method:
        with pytest.raises(UserError, match="load adapters before"):
            pipeline.load_lora_weights(files[0])
    pipeline.remove_all_hooks()
    torch.testing.assert_close(draw(pipeline), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_networks_generate_the_same(method):
    expected, pipeline = draw(tiny_pipeline().to("cuda")).cpu(), tiny_pipeline()
    getattr(pipeline, method)()
    for _ in range(2):
        torch.testing.assert_close(draw(pipeline).cpu(), expected, atol=1e-4, rtol=0)
        assert pipeline.device.type == "cuda" and pipeline.unet.device.type != "cuda"
    pipeline.remove_all_hooks()
    assert pipeline.device.type == "cpu"
