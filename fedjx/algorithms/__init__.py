"""Federated algorithms, one method a file. Attacks on training are in `attacks`."""

from fedjx.algorithms.agnostic_fed_avg import agnostic_fed_avg
from fedjx.algorithms.apfl import Personal, apfl, mixed
from fedjx.algorithms.delta_sgd import delta_sgd
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
from fedjx.algorithms.personalization import fine_tuning, personal_evaluation, personalization_evaluation, unchanged
from fedjx.algorithms.q_fed_avg import q_fed_avg
from fedjx.algorithms.reconstruction import reconstructing, reconstruction
from fedjx.algorithms.reptile import reptile
from fedjx.algorithms.scaffold import scaffold
from fedjx.algorithms.sufficient_statistics import sufficient_statistics
from fedjx.training.batch_stats import in_batch_norm, is_batch_stat, trained_alone
from fedjx.training.client import (
    ClientOptimizer,
    ClientUpdate,
    LocalAmount,
    LocalResult,
    checked,
    local_evaluate,
    local_train,
    local_update,
    optimizer_of,
    reported,
)
from fedjx.training.compose import ServerState, compose, round_context, round_keys, round_metrics, scaled
from fedjx.training.failures import Failures, with_failures
from fedjx.training.gradients import local_gradient
from fedjx.training.parts import Parts, frozen, merge, partition
from fedjx.training.splits import alternate_split, feature_split, no_split, random_split, split_where
from fedjx.training.stateful import compose_stateful
from fedjx.training.stateful_rounds import StatefulRounds, stateful_rounds
from fedjx.training.surrogate import with_gradient
from fedjx.training.with_memory import compose_with_memory

__all__ = [
    "ClientOptimizer",
    "ClientUpdate",
    "Clusters",
    "Components",
    "EmaState",
    "Failures",
    "LocalAmount",
    "LocalResult",
    "Mixture",
    "Parts",
    "Personal",
    "ServerState",
    "StatefulRounds",
    "agnostic_fed_avg",
    "alternate_split",
    "apfl",
    "checked",
    "client_clusters",
    "compose",
    "compose_stateful",
    "compose_with_memory",
    "delta_sgd",
    "ditto",
    "ema",
    "feature_split",
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
    "frozen",
    "gaussian_mixture",
    "ifca",
    "in_batch_norm",
    "is_batch_stat",
    "kmeans",
    "kmeans_start",
    "local_evaluate",
    "local_gradient",
    "local_train",
    "local_update",
    "merge",
    "meta_model",
    "mime",
    "mixed",
    "mixture_around",
    "moreau_envelope",
    "no_split",
    "optimizer_of",
    "p_fed_me",
    "partition",
    "pca",
    "per_fed_avg",
    "personal_evaluation",
    "personalization_evaluation",
    "proximal",
    "q_fed_avg",
    "random_split",
    "reconstructing",
    "reconstruction",
    "reported",
    "reptile",
    "round_context",
    "round_keys",
    "round_metrics",
    "scaffold",
    "scaled",
    "server_adagrad",
    "server_adam",
    "server_yogi",
    "split_where",
    "stateful_rounds",
    "sufficient_statistics",
    "trained_alone",
    "unchanged",
    "with_failures",
    "with_gradient",
]
