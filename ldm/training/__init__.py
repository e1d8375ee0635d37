"""One loop, its tasks, checkpoints, EMA, latent cache and cost estimates."""
