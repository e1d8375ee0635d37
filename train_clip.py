"""Train the text encoder against an image encoder: `accelerate launch train_clip.py configs/glyphs.yaml`."""

from ldm.config.overrides import parse
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision


def main() -> None:
    settings, invocation = parse("clip")
    prepare_threads(settings.train.threads)
    patch_torchvision()
    if invocation.dry_run:
        from ldm.training.cost_estimate import plan

        return print(plan("clip", settings))

    from ldm.data import build
    from ldm.training.distributed import start_world
    from ldm.training.run_directory import open_run
    from ldm.training.tasks.clip import ClipTask
    from ldm.training.trainer import Trainer

    with start_world().main_process_first():
        run = open_run(settings, "clip")
        task = ClipTask(settings, build(settings.data), run)
    Trainer(task, settings, run).fit(invocation.resume, invocation.allow_changed)


if __name__ == "__main__":
    run_main(main)
