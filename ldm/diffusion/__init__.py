"""x_t = alpha_t x_0 + sigma_t eps and what follows: schedules, losses, samplers, guidance, likelihood."""
