"""What is in a directory."""

from pathlib import Path


def contents(path: Path) -> dict[str, bytes]:
    """Reads all files below a directory, by name."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
