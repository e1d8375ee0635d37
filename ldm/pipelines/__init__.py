"""From a prompt to an image: assembling components, the denoising loop, editing, ONNX."""
