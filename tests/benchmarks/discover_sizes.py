"""Time and memory of ``discover`` on the sizes people train, beside the time of the export.

Parameters have no values: they are on the meta device, so that only what ``discover`` itself needs
counts. All but ResNet-50 are built by ``transformers`` from their configurations.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import process_time

import torch
from discover import make
from torch import nn

import quotientnet as qn
from quotientnet.symmetry.export import export
from quotientnet.symmetry.graph import Walk

WORDS = 64
"""The length of a text."""


def resnet(_) -> tuple[nn.Module, dict]:
    """ResNet-50 in evaluation mode."""
    return make(64), {"input": torch.zeros(2, 3, 64, 64)}


def vit(layers: int = 12) -> tuple[nn.Module, dict]:
    """ViT-B/16, which returns what it makes of the class token."""
    import transformers

    config = transformers.ViTConfig(num_labels=1000, num_hidden_layers=layers)
    model = transformers.ViTForImageClassification(config)
    return model, {"pixel_values": torch.zeros(1, 3, 224, 224)}


def gpt2(layers: int = 12) -> tuple[nn.Module, dict]:
    """GPT-2 small."""
    import transformers

    config = transformers.GPT2Config(use_cache=False, n_layer=layers)
    return transformers.GPT2LMHeadModel(config), _words()


def bert(layers: int = 12) -> tuple[nn.Module, dict]:
    """BERT-base, with masked words."""
    import transformers

    config = transformers.BertConfig(num_hidden_layers=layers)
    return transformers.BertForMaskedLM(config), _words()


def llama(layers: int = 22) -> tuple[nn.Module, dict]:
    """A Llama of 1.1 billion parameters, with four heads of keys."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=4, vocab_size=32000, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), _words()


def _words() -> dict:
    return {"input_ids": torch.zeros(1, WORDS, dtype=torch.long)}


MODELS = {
    "ResNet-50": (resnet, None), "ViT-B/16": (vit, 12), "GPT-2 small": (gpt2, 12),
    "BERT-base": (bert, 12), "Llama, 6 layers": (llama, 6), "Llama, 11 layers": (llama, 11),
    "Llama, 22 layers": (llama, 22),
}  # fmt: skip


def measure(name: str, rounds: int) -> dict:
    """Seconds of the processor for the export, what comes after it, and all of ``discover``."""
    torch.set_num_threads(1)
    build, layers = MODELS[name]
    with torch.device("meta"):
        model, inputs = build(layers)
    inputs = tuple(inputs.values()) if layers is None else inputs
    model.eval()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    program, found = export(model, args, kwargs), []
    layout = qn.ParameterLayout.from_module(model)
    before = _peak()
    found.append(qn.discover(model, inputs))
    extra = _peak() - before
    exports, walks, totals = [], [], []
    for _ in range(rounds):
        exports.append(_seconds(lambda: export(model, args, kwargs)))
        walks.append(_seconds(lambda: Walk(program, layout).equations.solve()))
        totals.append(_seconds(lambda: found.append(qn.discover(model, inputs))))
    symmetry = found[-1]
    assert not symmetry.unknown and all(s.group == symmetry.group for s in found)
    derived, beyond = median(walks), median(totals) - median(exports)
    return {
        "network": name, "parameters": symmetry.group.layout.parameter_size,
        "operations": len(program.graph.nodes), "generators": symmetry.group.dimension,
        "export_seconds": median(exports), "derived_seconds": derived,
        "ratio": derived / median(exports), "beyond_seconds": beyond,
        "extra_peak_mebibytes": extra,
        "parameter_mebibytes": 4 * symmetry.group.layout.parameter_size / 2**20,
    }  # fmt: skip


def _seconds(task) -> float:
    started = process_time()
    task()
    return process_time() - started


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table and write ``discover_sizes.json``; each network in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--network", choices=MODELS, help="measure one and print it as JSON"
    )
    options = parser.parse_args()
    if options.network:
        print(json.dumps(measure(options.network, options.rounds)))
        return
    rows = []
    for name in MODELS:
        command = [
            sys.executable,
            __file__,
            "--network",
            name,
            "--rounds",
            str(options.rounds),
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(row := json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{name}: {row['parameters']:,} parameters, {row['operations']:,} operations, "
            f"{row['generators']:,} generators; export {row['export_seconds']:.2f} s, walk and "
            f"solution {row['derived_seconds']:.2f} s, ratio {row['ratio']:.2f}; all beyond the "
            f"export {row['beyond_seconds']:.2f} s; extra peak "
            f"{row['extra_peak_mebibytes']:.0f} MiB for {row['parameter_mebibytes']:.0f} of them",
            flush=True,
        )
    facts = {
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "words": WORDS,
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "discover_sizes.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
