"""The papers' layers, with torch's conventions: `p` is a DROP probability, channels are axis 1."""

from __future__ import annotations

from . import init as init
from ._analytic_graph import AnalyticGraph as AnalyticGraph
from ._analytic_init import analytic_init_ as analytic_init_
from ._analytic_network import AnalyticNetwork as AnalyticNetwork
from ._analytic_network import AnalyticResidual as AnalyticResidual
from ._analytic_network import propagate as propagate
from ._analytic_norm import AnalyticModule as AnalyticModule
from ._analytic_norm import AnalyticNorm1d as AnalyticNorm1d
from ._analytic_norm import AnalyticNorm2d as AnalyticNorm2d
from ._analytic_norm import AnalyticNorm3d as AnalyticNorm3d
from ._analytic_rules import moment_rule as moment_rule
from ._batch_kalman_norm import BatchKalmanNorm1d as BatchKalmanNorm1d
from ._batch_kalman_norm import BatchKalmanNorm2d as BatchKalmanNorm2d
from ._batch_renorm import BatchRenorm1d as BatchRenorm1d
from ._batch_renorm import BatchRenorm2d as BatchRenorm2d
from ._batch_renorm import BatchRenorm3d as BatchRenorm3d
from ._batch_renorm import RenormClipping as RenormClipping
from ._binary_conv import BinaryConv2d as BinaryConv2d
from ._dropout import Dropout as Dropout
from ._dropout import GaussianDropout as GaussianDropout
from ._dropout import UniformDropout as UniformDropout
from ._filter_response_norm import FilterResponseNorm1d as FilterResponseNorm1d
from ._filter_response_norm import FilterResponseNorm2d as FilterResponseNorm2d
from ._filter_response_norm import FilterResponseNorm3d as FilterResponseNorm3d
from ._filter_response_norm import FilterResponseNormTLU1d as FilterResponseNormTLU1d
from ._filter_response_norm import FilterResponseNormTLU2d as FilterResponseNormTLU2d
from ._filter_response_norm import FilterResponseNormTLU3d as FilterResponseNormTLU3d
from ._filter_response_norm import ThresholdedLinearUnit as ThresholdedLinearUnit
from ._freezing import Freezing as Freezing
from ._freezing import freeze_batch_norm as freeze_batch_norm
from ._freezing import freeze_batch_norm_ as freeze_batch_norm_
from ._freezing import unfreeze_batch_norm as unfreeze_batch_norm
from ._freezing import unfreeze_batch_norm_ as unfreeze_batch_norm_
from ._frozen_batch_norm import FrozenBatchNorm as FrozenBatchNorm
from ._group_kalman_norm import GroupKalmanNorm2d as GroupKalmanNorm2d
from ._independent_component import IndependentComponent1d as IndependentComponent1d
from ._independent_component import IndependentComponent2d as IndependentComponent2d
from ._independent_component import IndependentComponent3d as IndependentComponent3d
from ._norm_free_block import NormFreeBinaryBlock as NormFreeBinaryBlock
from ._norm_free_block import NormFreeBinaryPairBlock as NormFreeBinaryPairBlock
from ._react import RPReLU as RPReLU
from ._react import RSign as RSign
from ._scaled_std_conv import ScaledStdConv2d as ScaledStdConv2d
