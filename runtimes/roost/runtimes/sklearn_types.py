"""Types that files of scikit-learn's models may have objects of, besides those that skops trusts itself.

skops makes an object without running its class's ``__init__``, so what a type is made of is data as long as the type
itself is harmless: no function that a file could have called, no array that compiled code indexes without looking.
"""

from __future__ import annotations

from typing import Final

CHECKED_TYPES: Final = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.tree._tree.Tree",
)
"""Types with such arrays; ``roost.runtimes.sklearn_parts`` looks at them after the load."""

_KERNELS = (
    "CompoundKernel",
    "ConstantKernel",
    "DotProduct",
    "ExpSineSquared",
    "Exponentiation",
    "Matern",
    "Product",
    "RBF",
    "RationalQuadratic",
    "Sum",
    "WhiteKernel",
)
_SCORES = ("chi2", "f_classif", "f_regression", "mutual_info_classif", "mutual_info_regression")

HARMLESS_TYPES: Final = (
    "builtins.bytearray",
    "collections.OrderedDict",
    "collections.defaultdict",
    "functools.partial",  # of a function that has to be trusted as well
    "lightgbm.basic.Booster",  # boosters read their own format, as they do without scikit-learn
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRanker",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "scipy.sparse._csr.csr_matrix",
    "sklearn._loss.loss.HalfTweedieLossIdentity",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.cluster._bisect_k_means._BisectingTree",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.utils.validation.check_array",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRanker",
    "xgboost.sklearn.XGBRegressor",
    *(f"sklearn.feature_selection._univariate_selection.{name}" for name in _SCORES),
    *(f"sklearn.gaussian_process.kernels.{name}" for name in _KERNELS),
)
