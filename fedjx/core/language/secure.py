"""A check that the server sees nothing of single clients but through secure sums."""

from __future__ import annotations

from fedjx.core.language.traced import Traced


def check_secure(computation: Traced, *args: object, **kwargs: object) -> None:
    """Refuses a computation that shows the server more of the clients' values than secure sums of them.

    The traced graph is looked at and nothing is run. Metrics count as all else does. What clients
    do by themselves, what the server does with secure totals, and what is said of clients without
    looking at them (the sum of a constant) is allowed; so are results that stay at CLIENTS.
    ``federated_select`` is not: it shows the server which slices each client asks for.

    Nor is a secure sum of what depends on the client's id, in which each value may have a place of its own, or all
    others may be made to add 0; nor an effect in a client's function, such as ``jax.debug.callback`` or
    ``jax.debug.print``. Random keys are no such dependence, `federated_keys` and ``fold_in(key, id)`` alike: they
    stand for randomness of the client's own, and clients that draw still compute alike.

    It does not check how many clients a total is of: that of one client is its value. `secure_sum` and `secure_mean`
    of `fedjx.aggregation` take ``min_clients``. Nor does it see what clients compute: a value may have a place by a
    client's data or by its key, and a model may memorise. Against these only noise helps.

    Args:
      computation: The federated computation.
      *args: Values, streams or types of its arguments; none are needed where types are declared.
      **kwargs: The same, by name.

    Raises:
      ValueError: If there is such an operator or effect; the message names each, and the results it is for.

    >>> largest = fedjx.federated_computation(fedjx.FederatedType(jnp.int32, fedjx.CLIENTS))(fedjx.federated_max)
    >>> check_secure(largest)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: only secure sums may touch client values; got federated_max of {int32}@CLIENTS for result in ...
    """
    exposed = computation.program(*args, **kwargs).exposed()
    if exposed:
        raise ValueError(
            f"only secure sums may touch client values; got {'; '.join(exposed)} in {computation.name}. "
            "Send integers through federated_secure_sum, or leave it out; let clients differ by federated_keys alone."
        )
