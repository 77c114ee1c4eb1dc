"""Small tensors, many tests: one thread each is faster, and two runs do not fight for cores."""

from importlib.util import find_spec

import torch

torch.set_num_threads(1)

# Doctests are looked for in every module; this one needs a library that the tests do not.
collect_ignore = [] if find_spec("transformers") else ["families.py"]
