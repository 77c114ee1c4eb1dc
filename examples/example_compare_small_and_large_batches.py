"""
Compare small and large batches
===============================

Do large batches lead to sharper minima and worse accuracy, when sharpness does not depend on how
the network is written down?

[Rangamani2019]_ (Table 4 and Figure 2) finds both: less accuracy with large batches, and spectral
norms that are larger by orders of magnitude. Two networks are trained here; the figure is drawn
from the kept results of ``python examples/experiments/large_batch.py --full``, in the folder that
this example reads.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
import large_batch  # noqa: E402
import pictures  # noqa: E402

SEED = 0
NAMES = "node-wise spectral norm", "normalised sharpness", "training loss"

# %%
# In miniature
# ------------
# A dense network with batches of 32 and of 640 digits and, as in the paper, ten times the learning
# rate, until the training loss falls below 0.2: then curvature is compared at the same loss. At the
# first of both moments, after 12 epochs, losses may differ.

live = {}
for batches in ("small", "large"):
    settings = large_batch.settings_of("dense", batches, SEED, epochs=12, bound=0.2)
    live[batches] = large_batch.carried_out(settings)
    for moment, found in live[batches].items():
        cells = [f"{name} {found['measures'][name]:.3g}" for name in NAMES]
        print(
            f"{batches} batch, {moment.replace('_', ' ')}, epoch {found['epoch']}: accuracy "
            f"{found['test_accuracy']:.1%}; {'; '.join(cells)}"
        )

# %%
# In full
# -------
# From here on every number is read from the kept JSON: a dense network and a small LeNet, with as
# many seeds as it says. Seeds fix split, start and shuffling, so that differences and quotients to
# small batches are paired; ± and brackets are 95 % intervals after Student, those of quotients by
# their logarithms. A third setting takes large batches with the learning rate of the small ones.

facts = pictures.kept("large_batch")
print(pictures.origin(facts), "\n")
large_batch.show(facts)

# %%
# Left, the loss along random directions in which every tensor moves by its own size, along straight
# lines as in the paper and along geodesics of the layer-scale quotient. Right, quotients of
# measures to those with small batches.

figure = pictures.large_batch(facts)
plt.show()

# %%
# What reproduces
# ---------------
# The paper's spectral norms with large batches are larger by a factor of 16 to a million. Here no
# interval of a spectral norm's quotient reaches a hundred at the same loss, on either quotient,
# with ten times the learning rate or with the same one. After the same number of epochs large
# batches with the same rate are less accurate, but they have been trained less, and their loss is
# higher: that alone makes the curvature of the cross-entropy larger. These are the differences of
# accuracy and quotients of spectral norms whose intervals leave out 0 and 1:

NORMS = "layer-scale spectral norm", "node-wise spectral norm"
for row in facts["table"]:
    if row["batches"] == large_batch.SMALL:
        continue
    where = f"{row['network']}, {row['batches']}, {row['moment'].replace('_', ' ')}"
    change, half = row["test_accuracy_difference"]
    if abs(change) > half:
        print(f"{where}: accuracy {100 * change:+.1f} ± {100 * half:.1f} points")
    for name in NORMS:
        ratio, low, high = row["ratios"][name]
        if low > 1 or high < 1:
            print(f"{where}: {name} × {ratio:.2f} [{low:.2f}, {high:.2f}]")
        assert row["moment"] == "equal_epochs" or high < 100
    if row["moment"] == "equal_loss":
        assert max(row["values"]["train_loss"]) <= facts["recipe"]["bound"]
