"""Data sets as plain tensors, their augmentation, and loaders that shuffle them by seed."""

from __future__ import annotations

from ._augment import Augmentation as Augmentation
from ._augment import Draws as Draws
from ._augment import pad_crop_flip as pad_crop_flip
from ._choose import subset as subset
from ._choose import with_label_noise as with_label_noise
from ._cifar import cifar10 as cifar10
from ._cifar import cifar100 as cifar100
from ._datasets import dataset as dataset
from ._datasets import dataset_names as dataset_names
from ._digits import Digits as Digits
from ._digits import digit_images as digit_images
from ._digits import digits as digits
from ._epoch_loader import EpochLoader as EpochLoader
from ._epoch_loader import StoredOrderSampler as StoredOrderSampler
from ._fashion import fashion_mnist as fashion_mnist
from ._files import data_folder as data_folder
from ._folder import image_folder as image_folder
from ._folder import imagenet as imagenet
from ._images import Images as Images
from ._images import channel_moments as channel_moments
from ._loader import tensor_loader as tensor_loader
