"""Prunes the torch micro-models with Torch-Pruning; prints what became of each.

Every model is pruned in a process of its own, which has a minute.
"""

import copy
import json
import multiprocessing
import sys
import warnings
from importlib import metadata

import numpy as np
import torch
import torch_pruning as tp
from rivals.cases import CASES, IMAGE, NARROW, SEEDS, batch, filled, verdict, worst
from rivals.torch_models import MODELS

LIMIT = 60
PACKAGES = ("torch", "torch-pruning")


def fill(model, seed):
    """Gives a model its weights."""
    random = np.random.default_rng(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            value.data = torch.from_numpy(filled(value.shape, name, random))


def kept(whole, left):
    """For each axis of an array, which of its indices a smaller array holds."""
    order = np.argsort(whole, axis=None)
    place = order[np.searchsorted(whole.ravel()[order], left.ravel())]
    if not np.array_equal(whole.ravel()[place], left.ravel()):
        raise ValueError("numbers that were not there before")
    where = np.unravel_index(place.reshape(left.shape), whole.shape)
    indices = [np.unique(index) for index in where]
    if [len(index) for index in indices] != list(left.shape):
        raise ValueError("no part of what was there")
    return indices


def zeroed(model, pruned):
    """The model with zeros in the place of what is not in the pruned one."""
    small = dict(pruned.named_parameters())
    for name, value in model.named_parameters():
        left = np.zeros(value.shape, bool)
        if value.ndim:
            parts = (value.detach().numpy(), small[name].detach().numpy())
            left[np.ix_(*kept(*parts))] = True
            value.data = torch.where(torch.tensor(left), value.data, 0.0)
    return model


def judge(name, model, pruned):
    """The model that says what is right."""
    if name not in NARROW:
        return zeroed(model, pruned)
    narrow = MODELS[name](share=2).eval()
    narrow.load_state_dict(pruned.state_dict())
    return narrow


def prune(model, x):
    """Torch-Pruning as its guide has it: the last layer is ignored, heads are told."""
    heads = {getattr(model, name): count for name, count in model.heads.items()}
    tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        num_heads=heads,
        prune_num_heads=model.whole,
        prune_head_dims=not model.whole,
        head_pruning_ratio=0.5 if model.whole else 0.0,
        ignored_layers=[model.out],
    ).step()


def outcome(name, seed=0):
    """The share of numbers that is left, and a verdict."""
    x = torch.from_numpy(batch(name))
    x = x.permute(0, 3, 1, 2).contiguous() if CASES[name] == IMAGE else x
    model = MODELS[name]().eval()
    fill(model, seed)
    pruned = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    try:
        prune(pruned, x)
    except Exception as error:  # whatever it raises is the result
        return 1.0, f"{type(error).__name__} while pruning"
    left = sum(p.numel() for p in pruned.parameters()) / before
    if left == 1:
        return left, "not pruned"
    try:
        got = pruned(x)
    except Exception as error:
        return left, f"BROKEN: {type(error).__name__} when called"
    try:
        want = judge(name, model, pruned)(x)
    except Exception as error:
        return left, f"BROKEN: {error}"
    return left, verdict(got.detach().numpy(), want.detach().numpy())


def send(pipe, name):
    """Sends the worst outcome of a case."""
    pipe.send(worst([outcome(name, seed) for seed in SEEDS]))


def limited(name):
    """The same, of a process that is stopped when it takes too long."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=send, args=(there, name), daemon=True)
    process.start()
    there.close()
    try:
        if here.poll(LIMIT):
            return here.recv()
        return 1.0, f"no end within {LIMIT} s"
    except EOFError:
        return 1.0, "the process died"
    finally:
        process.kill()
        process.join()


def main():
    """Prints everything as JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    version = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    names = sys.argv[1:] or CASES
    print(json.dumps({"version": version, **{name: limited(name) for name in names}}))


if __name__ == "__main__":
    main()
