"""The forms in which goldens come: one module per family of systems, one function per form."""
