"""Data sets behind one function, and the shuffling and augmentation of examples."""

from ._augment import random_flip as random_flip
from ._dataset import Dataset as Dataset
from ._files import ImageFiles as ImageFiles
from ._labels import Conditions as Conditions, Labels as Labels
from ._load import NAMES as NAMES, load as load
from ._names import is_function as is_function, title as title
from ._shuffle import shuffled_indices as shuffled_indices
from ._standardise import Standardisation as Standardisation
