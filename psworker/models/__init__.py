"""Models: what turns parameters and a batch into gradients."""

from psworker.models.linear import LinearRegression
from psworker.models.load import build_model
from psworker.models.logistic import LogisticRegression
from psworker.models.model import EvaluatedModel, Model
from psworker.models.perceptron import Perceptron
from psworker.models.softmax import SoftmaxRegression

__all__ = [
    "EvaluatedModel",
    "LinearRegression",
    "LogisticRegression",
    "Model",
    "Perceptron",
    "SoftmaxRegression",
    "build_model",
]
