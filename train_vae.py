"""Train the autoencoder: `accelerate launch train_vae.py configs/glyphs.yaml [--optim.lr 2e-4 ...]`."""

from ldm.config.overrides import parse
from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision


def main() -> None:
    settings, invocation = parse("vae")
    prepare_threads(settings.train.threads)
    patch_torchvision()
    if invocation.dry_run:
        from ldm.training.cost_estimate import plan

        return print(plan("vae", settings))

    from ldm.data import build
    from ldm.evaluation.autoencoder_report import write_report
    from ldm.models.autoencoder import load_vae
    from ldm.training.distributed import start_world
    from ldm.training.run_directory import open_run
    from ldm.training.tasks.vae import VaeTask
    from ldm.training.trainer import Trainer

    with start_world().main_process_first():
        run = open_run(settings, "vae")
        data = build(settings.data)
    trainer = Trainer(VaeTask(settings, data), settings, run)
    trainer.fit(invocation.resume, invocation.allow_changed)
    if trainer.accelerator.is_main_process:
        write_report(load_vae(run), data.validation, run, data.train)


if __name__ == "__main__":
    run_main(lambda: train_stage("vae"))
