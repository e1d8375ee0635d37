"""The user's own images: folders, tables, Hub data sets, and the cache of their pixels."""
