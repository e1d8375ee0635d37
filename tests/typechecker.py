"""The run-time type checker that pyproject.toml names for annotated packages: beartype; an int is a float too."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
