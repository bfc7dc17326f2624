"""Estimators as scikit-learn has them, trained on a cluster.

from psworker.estimators import Classifier

model = Classifier("svm", {"l2": 1e-4}, workers=4).fit(x, y)
"""

try:
    from psworker.estimators.classifier import Classifier
    from psworker.estimators.kmeans import KMeans
    from psworker.estimators.matrix_factorization import MatrixFactorization
    from psworker.estimators.regressor import Regressor
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("scipy", "sklearn"):
        raise
    raise ImportError(
        "psworker.estimators needs scikit-learn, 1.6 or later; pip install 'asyncps[sklearn]'"
    ) from error

__all__ = ["Classifier", "KMeans", "MatrixFactorization", "Regressor"]
