"""`ldm app`: a demo of a model in the browser, served by gradio."""
