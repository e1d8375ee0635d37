"""Train the denoiser on the latents of a finished VAE: `accelerate launch train_ldm.py configs/glyphs.yaml`."""

from ldm.command_line import parse
from ldm.errors import prepare_threads, run_main
from ldm.torchvision_guard import mend_torchvision


def main() -> None:
    settings, invocation = parse("ldm")
    prepare_threads(settings.train.threads)
    mend_torchvision()
    if invocation.dry_run:
        from ldm.planning import plan

        return print(plan("ldm", settings, invocation.config))

    from ldm.data import build
    from ldm.diffusion import LdmTask
    from ldm.distill import DistillTask
    from ldm.evaluation.watch import watch_for
    from ldm.finetune import FinetuneTask
    from ldm.runs import open_run
    from ldm.training import Trainer, start_world

    state = start_world()
    with state.main_process_first():
        run = open_run(settings, "ldm")
        kind = DistillTask if settings.distill.teacher else FinetuneTask if settings.start.model else LdmTask
        task = kind(settings, build(settings.data), run, state.device, watch_for(settings))
    Trainer(task, settings, run).fit(invocation.resume, invocation.allow_changed)


if __name__ == "__main__":
    run_main(main)
