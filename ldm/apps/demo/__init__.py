"""`ldm app`: the model in a browser, served by gradio."""
