"""Models: what turns parameters and a batch into gradients."""

from psworker.models.averaged_perceptron import AveragedPerceptron
from psworker.models.fm import FactorizationClassifier, FactorizationMachine
from psworker.models.huber import HuberRegression
from psworker.models.kmeans import KMeans
from psworker.models.lasso import ElasticNet
from psworker.models.linear import LinearRegression
from psworker.models.linear_exact import ExactLinearRegression
from psworker.models.load import KINDS, build_model
from psworker.models.logistic import LogisticRegression
from psworker.models.mf import MatrixFactorization
from psworker.models.mlp import NetworkClassifier, NetworkRegression
from psworker.models.model import (
    EvaluatedModel,
    HashedModel,
    Model,
    OwnRule,
    PredictingModel,
    PreparedModel,
    ProbableModel,
)
from psworker.models.passive_aggressive import PassiveAggressive
from psworker.models.perceptron import Perceptron
from psworker.models.quantile import QuantileRegression
from psworker.models.softmax import SoftmaxRegression
from psworker.models.svm import SupportVectorMachine

__all__ = [
    "KINDS",
    "AveragedPerceptron",
    "ElasticNet",
    "EvaluatedModel",
    "ExactLinearRegression",
    "FactorizationClassifier",
    "FactorizationMachine",
    "HashedModel",
    "HuberRegression",
    "KMeans",
    "LinearRegression",
    "LogisticRegression",
    "MatrixFactorization",
    "Model",
    "NetworkClassifier",
    "NetworkRegression",
    "OwnRule",
    "PassiveAggressive",
    "Perceptron",
    "PredictingModel",
    "PreparedModel",
    "ProbableModel",
    "QuantileRegression",
    "SoftmaxRegression",
    "SupportVectorMachine",
    "build_model",
]
