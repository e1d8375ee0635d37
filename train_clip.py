"""Train the text encoder against an image encoder: `accelerate launch train_clip.py configs/glyphs.yaml`."""

from ldm.command_line import parse
from ldm.errors import prepare_threads, run_main
from ldm.torchvision_guard import mend_torchvision


def main() -> None:
    settings, invocation = parse("clip")
    prepare_threads(settings.train.threads)
    mend_torchvision()
    if invocation.dry_run:
        from ldm.planning import plan

        return print(plan("clip", settings))

    from ldm.data import build
    from ldm.runs import open_run
    from ldm.text import ClipTask
    from ldm.training import Trainer, start_world

    with start_world().main_process_first():
        run = open_run(settings, "clip")
        task = ClipTask(settings, build(settings.data), run)
    Trainer(task, settings, run).fit(invocation.resume, invocation.allow_changed)


if __name__ == "__main__":
    run_main(main)
