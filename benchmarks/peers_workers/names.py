"""The names of the clients in the files of `benchmarks.input_pipeline`."""


def client_name(k: int) -> str:
    """Returns the name of a client, of the length of a writer's in EMNIST."""
    return f"f{k:04d}_{k % 100:02d}"
