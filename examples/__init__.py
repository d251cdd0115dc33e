"""Programs to copy and edit: ``python -m examples.NAME``."""
