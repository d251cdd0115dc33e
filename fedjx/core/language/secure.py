"""A check that the server sees nothing of single clients but through secure sums."""

from __future__ import annotations

from fedjx.core.language.traced import Traced


def check_secure(computation: Traced, *args: object, **kwargs: object) -> None:
    """Refuses a computation in which anything but `federated_secure_sum` touches the clients' values.

    The traced graph is looked at and nothing is run. Metrics count as all else does. What clients
    do by themselves, what the server does with secure totals, and what is said of clients without
    looking at them (the sum of a constant) is allowed; so are results that stay at CLIENTS.
    ``federated_select`` is not: it shows the server which slices each client asks for.

    It does not check how many clients a total is of, nor what they do before it. A total of one client is that client's
    value, and so is a sum in which all others are made to add 0, by their ids for example. Against the first,
    `secure_sum` and `secure_mean` of `fedjx.aggregation` take ``min_clients``.

    Args:
      computation: The federated computation.
      *args: Values, streams or types of its arguments; none are needed where types are declared.
      **kwargs: The same, by name.

    Raises:
      ValueError: If there is such an operator; the message names each, and the results it is for.

    >>> largest = fedjx.federated_computation(fedjx.FederatedType(jnp.int32, fedjx.CLIENTS))(fedjx.federated_max)
    >>> check_secure(largest)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: only secure sums may touch client values; got federated_max of {int32}@CLIENTS for result in ...
    """
    exposed = computation.program(*args, **kwargs).exposed()
    if exposed:
        raise ValueError(
            f"only secure sums may touch client values; got {'; '.join(exposed)} in {computation.name}. "
            "Send integers through federated_secure_sum, or leave it out."
        )
