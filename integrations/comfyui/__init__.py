"""Two nodes for ComfyUI: open a model folder of ldm, and generate images with it. See README.md beside this file."""

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths

from ldm import load_pipeline
from ldm.utils.assets import shipped_models

CATEGORY = "ldm"


def model_folders() -> dict[str, str]:
    """Name -> path or name of a model: what ldm wrote in ComfyUI's models/diffusers, and the included ones."""
    found = {name: name for name in shipped_models()}
    for root in map(Path, folder_paths.get_folder_paths("diffusers")):
        for index in sorted(root.glob("**/model_index.json")):
            if (index.parent / "ldm.json").is_file():
                found[index.parent.relative_to(root).as_posix()] = str(index.parent)
    return found


class LoadModel:
    """A model folder as a pipeline, on ComfyUI's device."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("LDM_MODEL",), ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (list(model_folders()),)}}

    def load(self, model: str) -> tuple[Any]:
        return (load_pipeline(model_folders()[model], device=comfy.model_management.get_torch_device()),)


class Generate:
    """Images of a prompt; image i is that of seed + i. Steps 0 and guidance -1 are the model's own."""

    CATEGORY, FUNCTION = CATEGORY, "generate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = {"multiline": True, "default": ""}
        return {
            "required": {
                "model": ("LDM_MODEL",),
                "prompt": ("STRING", text),
                "negative_prompt": ("STRING", text),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**53}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000}),
                "guidance": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 30.0, "step": 0.1}),
                "number": ("INT", {"default": 1, "min": 1, "max": 64}),
            }
        }

    def generate(
        self, model: Any, prompt: str, negative_prompt: str, seed: int, steps: int, guidance: float, number: int
    ) -> tuple[Any]:
        """IMAGE: float32 (number, height, width, 3), 0 to 1, on the CPU."""
        bar = comfy.utils.ProgressBar(steps or model.defaults["num_inference_steps"])

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(step + 1, pipeline.num_timesteps)
            return tensors

        images = model(
            prompt or None,
            negative_prompt=negative_prompt or None,
            num_inference_steps=steps or None,
            guidance_scale=None if guidance < 0 else guidance,
            num_images_per_prompt=number,
            seed=seed,
            output_type="pt",
            callback_on_step_end=after_step,
        ).images
        images = images.permute(0, 2, 3, 1).float().cpu()
        return (images.expand(-1, -1, -1, 3) if images.shape[-1] == 1 else images[..., :3],)


NODE_CLASS_MAPPINGS = {"LdmLoadModel": LoadModel, "LdmGenerate": Generate}
NODE_DISPLAY_NAME_MAPPINGS = {"LdmLoadModel": "Load ldm model", "LdmGenerate": "Generate (ldm)"}
