"""The papers' networks, with every placement of noise, every noise and every norm as an argument."""

from __future__ import annotations

from ._binary import BinaryResNet as BinaryResNet
from ._binary import ReActNet as ReActNet
from ._binary import binary_resnet as binary_resnet
from ._binary import reactnet as reactnet
from ._densenet import DenseNet as DenseNet
from ._densenet import densenet as densenet
from ._densenet_bc import DenseNetBC as DenseNetBC
from ._densenet_bc import densenet_bc as densenet_bc
from ._ic_resnet import ICResNet as ICResNet
from ._ic_resnet import ic_resnet as ic_resnet
from ._image_preresnet import ImagePreResNet as ImagePreResNet
from ._image_preresnet import image_preresnet as image_preresnet
from ._linear_bn import LinearBN as LinearBN
from ._linear_bn import linear_bn as linear_bn
from ._parts import Parts as Parts
from ._placement import Placement as Placement
from ._preresnet import PreResNet as PreResNet
from ._preresnet import preresnet as preresnet
from ._resnet import ResNet as ResNet
from ._resnet import resnet as resnet
from ._resnext import ResNeXt as ResNeXt
from ._resnext import resnext as resnext
from ._vgg import VGG as VGG
from ._vgg import vgg as vgg
from ._wide_resnet import WideResNet as WideResNet
from ._wide_resnet import wide_resnet as wide_resnet
