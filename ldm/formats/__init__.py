"""How images and captions lie on disk: folders, tables, archives, Hub data sets, and the decoding of each image."""
