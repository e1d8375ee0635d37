"""The noise process behind a stock scheduler, for what a scheduler does not say: our time, and our conversions."""

from typing import Any

from ldm.diffusion.schedules import Flow, Karras, NoiseProcess, Tabled


def process_of(scheduler: Any) -> NoiseProcess:
    """Schedule and prediction type of a diffusers scheduler; how times are drawn and weighed is not known to it.

    Raises: ValueError for a scheduler that is neither a flow, nor EDM, nor has a table of alphas_cumprod.
    """
    config = scheduler.config
    prediction_type = config.get("prediction_type", "flow_prediction")
    if config.get("use_flow_sigmas") or prediction_type == "flow_prediction":
        process = NoiseProcess()
        process.schedule = Flow(config.get("flow_shift") or config.get("shift") or 1.0)
    elif "sigma_data" in config:
        process = NoiseProcess("karras", "v_prediction")
        process.schedule = Karras(config["sigma_min"] / Karras.sigma_min)
    elif hasattr(scheduler, "alphas_cumprod"):
        process = NoiseProcess("linear", prediction_type)
        process.schedule = Tabled(scheduler.alphas_cumprod.double().cpu().numpy())
    else:
        raise ValueError(f"the noise process of {type(scheduler).__name__} is not known")
    process.learned_variance = config.get("variance_type") in ("learned", "learned_range")
    return process
