"""Train the autoencoder: `accelerate launch train_vae.py configs/glyphs.yaml [--optim.lr 2e-4 ...]`."""

from ldm.command_line import parse
from ldm.errors import prepare_threads, run_main
from ldm.torchvision_guard import mend_torchvision


def main() -> None:
    settings, invocation = parse("vae")
    prepare_threads(settings.train.threads)
    mend_torchvision()
    if invocation.dry_run:
        from ldm.planning import plan

        return print(plan("vae", settings))

    from ldm.autoencoder import VaeTask, load_vae
    from ldm.data import build
    from ldm.evaluation.reconstruction import write_report
    from ldm.runs import open_run
    from ldm.training import Trainer, start_world

    with start_world().main_process_first():
        run = open_run(settings, "vae")
        data = build(settings.data)
    trainer = Trainer(VaeTask(settings, data), settings, run)
    trainer.fit(invocation.resume, invocation.allow_changed)
    if trainer.accelerator.is_main_process:
        write_report(load_vae(run), data.validation, run)


if __name__ == "__main__":
    run_main(main)
