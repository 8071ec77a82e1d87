"""The run-time type checker of the tests: beartype, with an int standing for a float as for any type checker."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
