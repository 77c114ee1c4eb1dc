"""
Compare sharpness with the generalisation gap
=============================================

A network that has learnt random labels by heart generalises badly. Do measures of sharpness see it,
do they see more than the labels, and do they still when each network is written down with other
scales?

[Tsuzuku2019]_ (Figures 1, 3 and 4) and [Ibayashi2021]_ (Figure 2) say that invariant sharpness
ranks networks by their gap, and better than the trace of the Hessian. Three networks are trained
here; the figure is drawn from the kept results of the whole experiment,
``python examples/experiments/label_noise.py --full``, in the folder that this example reads.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

sys.path += [str(Path(place) / "experiments") for place in sys.path]  # beside this file
import label_noise  # noqa: E402
import pictures  # noqa: E402

from quotientnet.runs import Journal  # noqa: E402

SEED = 0
SHARES = [0.0, 0.4, 0.8]

# %%
# In miniature
# ------------
# Three networks learn 300 digits, more and more of them with random labels. Every network is
# measured as it was trained, and at an equivalent point where each unit has another scale.

with Journal(Path(tempfile.mkdtemp()) / "runs.jsonl") as journal:
    live = label_noise.experiment(journal, seeds=[SEED], shares=SHARES, epochs=80)

for number, share in enumerate(SHARES):
    values = {name: live["measures"][name] for name in label_noise.SHOWN}
    cells = [f"{places['as_trained'][number]:9.3g}" for places in values.values()]
    print(f"{share:4.0%} random, gap {live['networks']['gap'][number]:4.0%}:", *cells)
print("columns:", "; ".join(label_noise.SHOWN))

# %%
# At the equivalent points what is invariant to the scales of units is the same to rounding. The
# trace of the Hessian is larger by orders of magnitude.

for row in live["correlations"]:
    if row["measure"] in label_noise.SHOWN:
        print(f"{row['measure']:22} moved by {row['moved']:.0e}, relatively")
for row in label_noise.invariant(live):
    assert row["moved"] < 1e-6

# %%
# In full
# -------
# From here on every number is read from the kept JSON: networks at eleven shares of random labels,
# from none to all, with as many seeds as it says. Networks of one seed share their split, start and
# random scales, so Kendall's τ is over pairs of networks from different seeds, and its intervals at
# 95 % are percentiles of a bootstrap that draws whole seeds.

facts = pictures.kept("label_noise")
print(pictures.origin(facts))
print(f"{facts['seeds']} seeds, {facts['resamples']} resamples\n")
label_noise.show(facts)

# %%
# Above, each point is a network. Below, Kendall's τ of every measure with the gap. Circles are all
# networks as they were trained; squares are the same networks at random equivalent points, the
# negative control; diamonds compare only networks with the same share of random labels.

figure = pictures.label_noise(facts)
plt.show()

# %%
# What reproduces
# ---------------
# Invariant measures see random labels, and Euclidean ones only by grace of the training. At random
# equivalent points τ of the invariant ones is the same, that of the others far below. A little is
# left of it: random factors on traces that differ by orders of magnitude keep some of the order.

rows = {row["measure"]: row for row in facts["correlations"]}
for row in label_noise.invariant(facts):
    assert row["moved"] < 1e-6 and row["all_equivalent"] == row["all_as_trained"]
    assert row["all_as_trained"][1] > 0
trace = rows["trace of the Hessian"]
assert trace["all_equivalent"][2] < trace["all_as_trained"][1]

# %%
# What does not
# -------------
# As these networks were trained, by Adam from torch's initialisation, their scales are much
# alike, and normalised sharpness is not seen to rank them better than the trace of the Hessian.
# Minimum sharpness ranks them worse, where [Ibayashi2021]_ finds both measures on a level. Its
# loss is the cross-entropy; with that, normalised sharpness loses some of its τ, too. The norm of
# the balanced network, which is no curvature, does about as well as normalised sharpness.

NAMES = (
    "normalised sharpness", "normalised sharpness, cross-entropy", "minimum sharpness",
    "squared norm, balanced",
)  # fmt: skip
for name in NAMES:
    more = label_noise.interval_text(rows[name]["above_trace"])
    print(f"τ of {name} less that of the trace: {more}")
assert rows["normalised sharpness"]["above_trace"][1] < 0.05
assert rows["minimum sharpness"]["above_trace"][2] < 0

# %%
# The share of random labels decides the gap, and most of τ is that it decides sharpness, too.
# Among networks with the same share, which differ by split and start, these intervals are above 0:

seen = [name for name, row in rows.items() if row["within_as_trained"][1] > 0]
print(", ".join(seen) or "none", f"(of {len(rows)} measures)")
