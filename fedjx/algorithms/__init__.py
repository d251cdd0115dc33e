"""Federated methods, one a file; what they are made of is in `fedjx.training`. Attacks on training are in `attacks`."""

from fedjx.algorithms.agnostic_fed_avg import agnostic_fed_avg
from fedjx.algorithms.apfl import Personal, apfl, personal_params
from fedjx.algorithms.delta_sgd import delta_sgd
from fedjx.algorithms.distribution import Distribution, distribution
from fedjx.algorithms.ditto import ditto
from fedjx.algorithms.ema import EmaState, ema
from fedjx.algorithms.evaluation import federated_evaluation
from fedjx.algorithms.fed_avg import fed_avg
from fedjx.algorithms.fed_bn import fed_bn
from fedjx.algorithms.fed_dyn import fed_dyn
from fedjx.algorithms.fed_exp import fed_exp
from fedjx.algorithms.fed_lin import fed_lin
from fedjx.algorithms.fed_nova import fed_nova
from fedjx.algorithms.fed_opt import fed_adagrad, fed_adam, fed_avgm, fed_yogi, server_adagrad, server_adam, server_yogi
from fedjx.algorithms.fed_per import fed_per
from fedjx.algorithms.fed_prox import fed_prox, proximal
from fedjx.algorithms.fed_rep import fed_rep
from fedjx.algorithms.fed_sgd import fed_sgd
from fedjx.algorithms.gaussian_mixture import Mixture, gaussian_mixture, mixture_around
from fedjx.algorithms.ifca import client_clusters, ifca
from fedjx.algorithms.kmeans import Clusters, kmeans
from fedjx.algorithms.kmeans_start import kmeans_start
from fedjx.algorithms.mime import mime
from fedjx.algorithms.p_fed_me import moreau_envelope, p_fed_me
from fedjx.algorithms.pca import Components, pca
from fedjx.algorithms.per_fed_avg import meta_model, per_fed_avg
from fedjx.algorithms.personalization import (
    fine_tuning,
    no_fine_tuning,
    personal_evaluation,
    personalization_evaluation,
)
from fedjx.algorithms.q_fed_avg import q_fed_avg
from fedjx.algorithms.reconstruction import reconstructing, reconstruction
from fedjx.algorithms.reptile import reptile
from fedjx.algorithms.scaffold import scaffold
from fedjx.algorithms.sufficient_statistics import sufficient_statistics

__all__ = [
    "Clusters",
    "Components",
    "Distribution",
    "EmaState",
    "Mixture",
    "Personal",
    "agnostic_fed_avg",
    "apfl",
    "client_clusters",
    "delta_sgd",
    "distribution",
    "ditto",
    "ema",
    "fed_adagrad",
    "fed_adam",
    "fed_avg",
    "fed_avgm",
    "fed_bn",
    "fed_dyn",
    "fed_exp",
    "fed_lin",
    "fed_nova",
    "fed_per",
    "fed_prox",
    "fed_rep",
    "fed_sgd",
    "fed_yogi",
    "federated_evaluation",
    "fine_tuning",
    "gaussian_mixture",
    "ifca",
    "kmeans",
    "kmeans_start",
    "meta_model",
    "mime",
    "mixture_around",
    "moreau_envelope",
    "no_fine_tuning",
    "p_fed_me",
    "pca",
    "per_fed_avg",
    "personal_evaluation",
    "personal_params",
    "personalization_evaluation",
    "proximal",
    "q_fed_avg",
    "reconstructing",
    "reconstruction",
    "reptile",
    "scaffold",
    "server_adagrad",
    "server_adam",
    "server_yogi",
    "sufficient_statistics",
]
