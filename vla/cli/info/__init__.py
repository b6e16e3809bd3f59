"""`vla info`: one file per kind of answer."""
