"""Networks: autoencoder, text encoder, U-Net, adapters. No loss schedules, no training loop."""
