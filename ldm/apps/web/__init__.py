"""`ldm web`: a model as a folder of static files that generate images in the browser, with no server behind it.

`page/` holds what such a folder has beside the model: plain ES modules that mirror `ldm.pipelines.torch_free`.
"""
