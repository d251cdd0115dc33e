"""``tff.aggregators``: the private factories, by their names there. Here they are aggregators, ready for use."""

from __future__ import annotations

from fedjx.core.execution.process import Aggregator
from fedjx.privacy.dp_mean import dp_mean, dp_mean_adaptive
from fedjx.privacy.noise import tree


class DifferentiallyPrivateFactory:
    """Means with noise; arguments as in TensorFlow Federated. Clients count once each."""

    @staticmethod
    def gaussian_fixed(noise_multiplier: float, clients_per_round: float, clip: float) -> Aggregator:
        """Returns `fedjx.privacy.dp_mean`."""
        return dp_mean(clip=clip, noise_multiplier=noise_multiplier, expected_clients=clients_per_round)

    @staticmethod
    def gaussian_adaptive(
        noise_multiplier: float,
        clients_per_round: float,
        initial_l2_norm_clip: float = 0.1,
        target_unclipped_quantile: float = 0.5,
        learning_rate: float = 0.2,
        clipped_count_stddev: float | None = None,
    ) -> Aggregator:
        """Returns `fedjx.privacy.dp_mean_adaptive`."""
        return dp_mean_adaptive(
            noise_multiplier=noise_multiplier,
            expected_clients=clients_per_round,
            initial_clip=initial_l2_norm_clip,
            quantile=target_unclipped_quantile,
            learning_rate=learning_rate,
            count_stddev=clipped_count_stddev,
        )

    @staticmethod
    def tree_aggregation(
        noise_multiplier: float,
        clients_per_round: float,
        l2_norm_clip: float,
        record_specs: object = None,
        *,
        use_efficient: bool = True,
        num_rounds: int = 4096,
    ) -> Aggregator:
        """Returns `fedjx.privacy.dp_mean` with the noise of a tree over so many rounds, after which another begins.

        ``record_specs`` is not needed: the values say it themselves.
        """
        del record_specs
        return dp_mean(
            clip=l2_norm_clip,
            noise_multiplier=noise_multiplier,
            expected_clients=clients_per_round,
            noise=tree(num_rounds, efficient=use_efficient),
        )
