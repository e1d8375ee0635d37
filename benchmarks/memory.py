"""Peak memory of each stage, ours and the peer's, each in a fresh process.

    python benchmarks/memory.py                                  all stages
    python benchmarks/memory.py train_ldm sample --rounds 3
    python benchmarks/memory.py --device cuda --precision bf16 --batch 64

Resident memory of the largest process, and on a GPU the most that tensors held there. The peer's loops are those of
`train_step.py` (or its script, with `--peer-script`) and `autoencoder_step.py`; its sampling is the stock pipeline.
What is done once, such as building the cache of latents, is done by a first run that does not count.
"""

import argparse
import statistics
import sys
from pathlib import Path

from protocol import gpu_peak_mb, markdown, paired_ratio, process_rounds, ratio_text, write_report
from stacks import RESOLUTION, STACKS, ldm_settings, write_pictures, write_stack
from stepping import Program

from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

STAGES = {  # who can do it
    "import": ("ours", "peer"),
    "train_clip": ("ours",),
    "train_vae": ("ours", "peer"),
    "train_ldm": ("ours", "peer"),
    "sample": ("ours", "peer"),
}
STEPS = 3
PROMPT = "a photo of a red house"


def main() -> None:
    args = arguments()
    prepare_threads(args.threads)
    if args.torchvision:
        sys.path.append(str(args.torchvision))
    patch_torchvision()
    if args.child:
        return child(args)
    results = {}
    for stage in args.stages or STAGES:
        results[stage] = measure(stage, args)
        print(table({stage: results[stage]}), flush=True)
    write_report(args.output / "memory.json", {"precision": args.precision, "batch": args.batch, "stages": results})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1, help="runs that do not count; 0 where all caches are built")
    parser.add_argument("--batch", type=int, default=16, help="of the trainings")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--stack", choices=STACKS, default="light")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-script", type=Path, help="a copy of diffusers' train_text_to_image.py")
    parser.add_argument("--torchvision", type=Path, help="a folder to import torchvision from, if need be")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="models, pictures, caches")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "WHO"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(stage: str, args: argparse.Namespace) -> dict:
    """Megabytes of each run of a stage, by turns, and the ratio of ours to the peer's."""
    given = [word for word in sys.argv[1:] if word not in STAGES]
    commands = {who: [sys.executable, __file__, *given, "--child", stage, who] for who in STAGES[stage]}
    found = process_rounds(commands, args.rounds, args.warm_up)
    memory = {who: [each.max_rss_mb for each in runs] for who, runs in found.items()}
    results: dict = {"resident_mb": memory}
    if args.device == "cuda":
        gpu = {who: [float(each.output.split()[-1]) for each in runs] for who, runs in found.items()}
        results["gpu_mb"] = gpu
    for kind, values in list(results.items()):
        if "peer" in values and min(values["peer"]) > 0:
            results[f"{kind}_ratio"] = paired_ratio(values["ours"], values["peer"])
    return results


# ---- the stages ----------------------------------------------------------------------------------------------------


def child(args: argparse.Namespace) -> None:
    """One stage in this process; the last word it prints is the GPU's peak in megabytes, 0 without one."""
    stage, who = args.child
    if args.device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    {
        "import": import_only,
        "train_clip": train_clip,
        "train_vae": train_vae,
        "train_ldm": train_ldm,
        "sample": sample,
    }[stage](who, args)
    print(f"\n{gpu_peak_mb() or 0:.1f}")


def import_only(who: str, args: argparse.Namespace) -> None:
    if who == "peer":
        from diffusers import StableDiffusionPipeline  # noqa: F401
    else:
        from ldm.pipelines.loading import load_pipeline  # noqa: F401


def steps_of(run) -> None:
    program = Program(run)
    for _ in range(STEPS):
        program.step()
    program.stop()


def fit(task_of, settings, run: Path) -> None:
    """A few steps of our trainer, without a report or a checkpoint."""
    from ldm.training.trainer import Trainer

    class Short(Trainer):
        def _report(self):
            pass

        def _finish(self, trained):
            pass

        def save(self):
            pass

    run.mkdir(parents=True, exist_ok=True)
    Short(task_of(run), settings, run).fit("never")


def train_clip(who: str, args: argparse.Namespace) -> None:
    from ldm.config.settings import ClipSettings
    from ldm.data import build
    from ldm.training.tasks.clip import ClipTask

    data, train = files_and_training(args)
    settings = ClipSettings(model={"patch_size": 16, "context_length": 77}, data=data, train=train)
    fit(lambda run: ClipTask(settings, build(settings.data), run), settings, args.work / "memory-clip")


def train_vae(who: str, args: argparse.Namespace) -> None:
    if who == "peer":
        from peer_autoencoder import retold

        return steps_of(retold(args.stack, pictures_of(args), args.batch, args.precision, 50001))
    from ldm.config.settings import VaeSettings
    from ldm.data import build
    from ldm.training.tasks.vae import VaeTask

    data, train = files_and_training(args)
    shape = {"block_out_channels": STACKS[args.stack], "layers_per_block": 2, "norm_num_groups": 32}
    settings = VaeSettings(model=shape | {"mid_attention": True}, data=data, train=train | {"ema_decay": 0.0})
    fit(lambda run: VaeTask(settings, build(settings.data)), settings, args.work / "memory-vae")


def train_ldm(who: str, args: argparse.Namespace) -> None:
    model, pictures = write_stack(args.work / f"stack-{args.stack}", args.stack), pictures_of(args)
    if who == "peer":
        from peer_training import retold, script, script_arguments

        if args.peer_script:
            words = script_arguments(model, pictures, args.work / "peer", args.batch, args.precision)
            return steps_of(script(args.peer_script, words))
        return steps_of(retold(model, pictures, args.batch, args.precision))
    from diffusers import UNet2DConditionModel

    from ldm.data import build
    from ldm.training.distributed import start_world
    from ldm.training.tasks.denoising import denoising_task

    run = args.work / "memory-ldm"
    options = {"batch_size": args.batch, "mixed_precision": args.precision, "num_steps": STEPS}
    settings = ldm_settings(model, pictures, run, **options)

    def task_in(folder: Path):
        unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
        return denoising_task(settings, build(settings.data), folder, start_world().device, unet=unet)

    fit(task_in, settings, run)


def sample(who: str, args: argparse.Namespace) -> None:
    model = write_stack(args.work / f"stack-{args.stack}", args.stack)
    common = {"num_inference_steps": STEPS, "guidance_scale": 7.5}
    if who == "peer":
        import torch
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None).to(args.device)
        return pipeline(PROMPT, generator=torch.Generator().manual_seed(0), **common).images[0].size
    from ldm.pipelines.loading import load_pipeline

    load_pipeline(model, device=args.device)(PROMPT, seed=0, **common)


def pictures_of(args: argparse.Namespace) -> Path:
    return write_pictures(args.work / "pictures-64", 64)


def files_and_training(args: argparse.Namespace) -> tuple[dict, dict]:
    data = {"source": str(pictures_of(args)), "resolution": RESOLUTION, "channels": 3}
    train = {"num_steps": STEPS, "batch_size": args.batch, "mixed_precision": args.precision}
    return data | {"cache_dir": args.work / "cache"}, train | {"report_to": ["none"], "sample_every": 0}


def table(results: dict) -> str:
    rows: list[list[object]] = []
    for stage, found in results.items():
        for kind in ("resident_mb", "gpu_mb"):
            if kind in found:
                middle = {who: statistics.median(values) for who, values in found[kind].items()}
                ratio = found.get(f"{kind}_ratio")
                rows.append([
                    stage, kind, middle.get("peer", "-"), middle["ours"], ratio_text(ratio) if ratio else "-",
                ])  # fmt: skip
    return markdown(["stage", "peak", "peer", "ours", "ours / peer (quartiles)"], rows)


if __name__ == "__main__":
    run_main(main)
