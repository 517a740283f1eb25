"""Data sets behind one function, and the shuffling and augmentation of examples."""

from ._augment import random_flip as random_flip
from ._dataset import Dataset as Dataset, Labels as Labels
from ._files import ImageFiles as ImageFiles
from ._load import NAMES as NAMES, load as load
from ._shuffle import shuffled_indices as shuffled_indices
