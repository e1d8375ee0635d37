"""What the loop trains: text encoder, autoencoder, denoiser, and what is made of a finished one."""
