"""Train the denoiser on the latents of a finished VAE: `accelerate launch train_ldm.py configs/glyphs.yaml`."""

from ldm.config.overrides import parse
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision


def main() -> None:
    settings, invocation = parse("ldm")
    prepare_threads(settings.train.threads)
    patch_torchvision()
    if invocation.dry_run:
        from ldm.training.cost_estimate import plan

        return print(plan("ldm", settings, invocation.config))

    from ldm.data import build
    from ldm.evaluation.training_hook import hook_for
    from ldm.training.distributed import start_world
    from ldm.training.run_directory import open_run
    from ldm.training.tasks.denoising import denoising_task
    from ldm.training.tasks.distillation import distillation_task
    from ldm.training.tasks.finetuning import finetuning_task
    from ldm.training.trainer import Trainer

    state = start_world()
    with state.main_process_first():
        run = open_run(settings, "ldm")
        finished = finetuning_task if settings.start.model else denoising_task
        build_task = distillation_task if settings.distill.teacher else finished
        task = build_task(settings, build(settings.data), run, state.device, hook_for(settings))
    Trainer(task, settings, run).fit(invocation.resume, invocation.allow_changed)


if __name__ == "__main__":
    run_main(main)
