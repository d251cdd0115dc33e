"""Robust rules, and attacks, under the laws of every aggregator."""

from fedjx.aggregation.attacks import (
    alie,
    attacked,
    boosted,
    gaussian,
    in_turn,
    inner_product_manipulation,
    model_replacement,
    projected,
    scaled_to_norm,
    sign_flip,
)
from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.fl_trust import fl_trust
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import bulyan, krum, multi_krum
from fedjx.aggregation.median import coordinate_median, trimmed_mean
from tests.aggregation.case import Case


def is_one_of_three(client_id):
    return client_id % 4 == 1


CASES: dict[str, Case] = {
    "coordinate_median": Case(coordinate_median(), materialises=True),
    "coordinate_median_weighted": Case(coordinate_median(weighted=True), materialises=True),
    "trimmed_mean": Case(trimmed_mean(fraction=0.3), materialises=True),
    "trimmed_mean_weighted": Case(trimmed_mean(fraction=0.3, weighted=True), rtol=1e-4, materialises=True),
    "krum": Case(krum(num_malicious=1), materialises=True),
    "multi_krum": Case(multi_krum(num_malicious=1, num_selected=3), materialises=True),
    "bulyan": Case(bulyan(num_malicious=1), materialises=True),
    "geometric_median": Case(geometric_median(num_steps=2, from_mean=True, weighted=True), rtol=1e-4),
    "geometric_median_from_zero": Case(geometric_median(num_steps=2, from_mean=False), rtol=1e-4),
    "centred_clipping": Case(centred_clipping(bound=0.5, num_steps=2)),
    "norm_bounding": Case(norm_bounding(bound=0.5, weighted=True)),
    "fl_trust": Case(fl_trust(is_one_of_three), rtol=1e-4),
    "sign_flip": Case(attacked(sign_flip(), is_one_of_three)),
    "gaussian": Case(attacked(gaussian(stddev=1.0), is_one_of_three)),
    "alie": Case(attacked(alie(), is_one_of_three), rtol=1e-4),
    "inner_product_manipulation": Case(
        attacked(inner_product_manipulation(scale=0.5), is_one_of_three, inner=norm_bounding(bound=1))
    ),
    "model_replacement": Case(attacked(model_replacement(), is_one_of_three)),
    "scaled_to_norm": Case(attacked(scaled_to_norm(norm=2.0), is_one_of_three)),
    "projected_boosting": Case(attacked(in_turn(projected(radius=0.1), boosted(factor=3.0)), is_one_of_three)),
}
