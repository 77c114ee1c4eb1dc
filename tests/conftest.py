"""Small tensors, many tests: one thread each is faster, and two runs do not fight for cores."""

import torch

torch.set_num_threads(1)
