"""`callback_on_step_end` as in diffusers: it sees a call after each step, and what it returns decides the next ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.pipelines.denoising_loop import Predict, SamplingPlan

TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")  # what a callback may ask for
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]


def check_tensor_inputs(callback: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The tensors that a callback gets: its own `tensor_inputs` where it has some. Raises: ValueError."""
    names = getattr(callback, "tensor_inputs", names)
    if unknown := [name for name in names if name not in TENSORS]:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be of {', '.join(TENSORS)}, got {unknown}")
    return tuple(names)


class Session:
    """One run of a plan: its network calls, and what a callback does to them between the steps.

    `pipeline` shows the state to callbacks by the names of diffusers: `guidance_scale`, `num_timesteps`, `interrupt`.
    """

    def __init__(self, pipeline: Any, plan: SamplingPlan, bind: Callable[[SamplingPlan], Predict]):
        self._pipeline, self._plan, self._bind, self._predict = pipeline, plan, bind, bind(plan)
        self._bar: Any = None
        pipeline._guidance_scale, pipeline._interrupt = plan.guidance.scale, False

    def predict(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        return self._predict(x_t, timestep)

    @property
    def interrupted(self) -> bool:
        """Whether the remaining steps are left out."""
        return self._pipeline._interrupt

    def begin(self, num_steps: int) -> None:
        self._pipeline._num_timesteps, self._bar = num_steps, self._pipeline.progress_bar(total=num_steps)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def after_step(self, index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """The latents with which to continue."""
        if self._plan.callback_on_step_end is not None:
            latents = self._call_back(index, timestep, latents)
        self._bar.update()
        return latents

    def _call_back(self, index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        plan, callback = self._plan, self._plan.callback_on_step_end
        negative = plan.negative_prompt_embeds
        guided = negative is not None and plan.weights is None
        offered = {
            "latents": latents,
            "prompt_embeds": torch.cat([negative, plan.prompt_embeds]) if guided else plan.prompt_embeds,
            "negative_prompt_embeds": negative,
        }
        assert callback is not None
        returned = callback(self._pipeline, index, timestep, {name: offered[name] for name in plan.tensor_inputs})
        if not isinstance(returned, dict):
            raise ValueError(f"callback_on_step_end must return its dict of tensors, got {type(returned).__name__}")
        self._plan = self._changed(offered, returned)
        self._predict = self._bind(self._plan)
        return returned.get("latents", latents)

    def _changed(self, offered: dict[str, Any], returned: dict[str, Any]) -> SamplingPlan:
        """The plan with the embeddings and guidance scale that a callback left.

        As in diffusers, `prompt_embeds` has the negative prompts' rows first where guidance is on; without them
        guidance is off from now on. Raises: ValueError for another number of rows.
        """
        plan, embeds = self._plan, returned.get("prompt_embeds", offered["prompt_embeds"])
        negative, count = plan.negative_prompt_embeds, len(plan.noise)
        if negative is not None and plan.weights is None:
            if len(embeds) not in (count, 2 * count):
                raise ValueError(
                    f"prompt_embeds of a callback must have {count} or {2 * count} rows, got {len(embeds)}"
                )
            negative, embeds = embeds.split(count) if len(embeds) == 2 * count else (None, embeds)
        given = returned.get("negative_prompt_embeds")
        if given is not None and given is not offered["negative_prompt_embeds"]:
            negative = given
        scale = plan.guidance.scale if negative is None else float(self._pipeline._guidance_scale)
        guidance = replace(plan.guidance, scale=scale)
        return replace(plan, prompt_embeds=embeds, negative_prompt_embeds=negative, guidance=guidance)
