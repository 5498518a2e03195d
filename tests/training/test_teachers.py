"""Several teachers, and teachers that see the images otherwise than the student."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cluster.local import LocalStore
from orchestrator.planning.plan import NetworkSource
from orchestrator.training.checkpoint import load_network
from orchestrator.training.interface import StageInterrupted
from orchestrator.training.network import assemble
from orchestrator.training.teachers import Teachers, View, view_of
from specs.data import Sample
from specs.model import ModelSpec
from strategies import registry
from strategies.backbone import TapStudent

ARGS = {"patch_size": 7, "in_chans": 1, "num_classes": 10, "embed_dim": 48, "depth": 2, "num_heads": 3}
VIT56 = NetworkSource(model=ModelSpec(model="vit_tiny_patch16_224", args={**ARGS, "img_size": 56}), image_size=56)
RESNET = NetworkSource(model=ModelSpec(model="resnet10t", args={"in_chans": 1, "num_classes": 10}), image_size=40)


def config(name: str, **options):
    return registry.resolver(name).model_validate({"name": name, **options})


class Watched(nn.Module):
    """A network that says what it was shown."""

    num_features = 1

    def forward(self, images):
        self.shown = images
        return images.mean(dim=(2, 3))


def test_a_view_resamples_and_normalises_as_published():
    data = Sample(kind="sample", mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.2])
    network = Watched()
    network.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.1)}
    source = NetworkSource(model=ModelSpec(model="any", pretrained=True), image_size=14)
    raw = torch.rand(2, 3, 28, 28)
    ours = (raw - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    seen = view_of(TapStudent(network), source, data)(ours)
    small = F.interpolate(raw, size=(14, 14), mode="bicubic", antialias=True, align_corners=False)
    theirs = (small - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.5, 0.1]).view(3, 1, 1)
    torch.testing.assert_close(seen, theirs, atol=1e-5, rtol=1e-5)
    # Weights that were trained here are used to the data's own normalisation, whatever timm lists.
    trained = view_of(TapStudent(network), NetworkSource(stage="0" * 64), data)
    assert torch.equal(trained(ours), ours)


def test_all_teachers_answer_and_the_first_carries_the_others():
    networks = [TapStudent(Watched()) for _ in range(3)]
    shown = torch.randn(2, 1, 28, 28)
    out = Teachers(networks, [View(), View(14), View(56)])(shown)
    assert [tuple(n.model.shown.shape[2:]) for n in networks] == [(28, 28), (14, 14), (56, 56)]
    assert torch.equal(networks[0].model.shown, shown)
    assert torch.equal(out.logits, shown.mean(dim=(2, 3)))
    assert len(out.others) == 2
    assert not any(one.training for one in networks)


def test_a_stage_of_two_teachers_at_other_sizes(make_stage, run, store):
    strategies = (config("cross_inductive_bias"), config("early_knowledge"))
    stage = make_stage(teacher=RESNET, other_teachers=(VIT56,), strategies=strategies, precision="bf16")
    result = run(stage)
    assert 0 < result["teacher_seconds"] < result["seconds"]
    folder = store.fetch(f"stages/{stage.digest}")
    described = json.loads((folder / "model.json").read_text())
    assert described["teacher"]["image_size"] == 40
    assert [other["model"] for other in described["other_teachers"]] == ["vit_tiny_patch16_224"]
    network = load_network(folder)
    assert len(network.extras["cross_inductive_bias"].tokens) == 2
    assert network(torch.randn(2, 1, 28, 28)).logits.shape == (2, 10)


def test_teachers_stay_as_they_are_and_give_only_what_is_read(make_stage, store):
    strategies = (config("cross_inductive_bias"), config("early_knowledge"))
    stage = make_stage(teacher=RESNET, other_teachers=(VIT56,), strategies=strategies)
    networks = assemble(stage, store, torch.device("cpu"))
    first, second = networks.teacher.networks
    assert first.taps
    assert not second.taps
    assert not any(p.requires_grad for p in networks.teacher.parameters())
    assert [facts.image_size for facts in networks.facts.teachers] == [40, 56]


def test_peers_train_and_stay_behind(make_stage, run, store):
    from orchestrator.measurement.network import load_deployed

    stage = make_stage(strategies=(config("mutual", peers=2),), label_smoothing=0.1)
    run(stage)
    folder = store.fetch(f"stages/{stage.digest}")
    assert "mutual" in load_network(folder).extras
    assert "mutual" not in load_deployed(folder).network.extras


def test_a_size_that_the_teacher_cannot_take(make_stage, run):
    from orchestrator.errors import SpecError

    with pytest.raises(SpecError, match="takes images of 56 px, and the stage shows it 28 px"):
        run(make_stage(teacher=VIT56.model_copy(update={"image_size": None}), strategies=(config("response"),)))


@pytest.mark.parametrize("stop_after", [3, 7])
def test_peers_and_several_teachers_resume_bit_for_bit(make_stage, run, tmp_path, stop_after):
    strategies = (config("cross_inductive_bias"), config("mutual", peers=2))
    options = {"ema": 0.8, "checkpoint_every_steps": 3, "args": {"drop_path_rate": 0.1}}
    stage = make_stage(teacher=RESNET, other_teachers=(VIT56,), strategies=strategies, **options)
    whole, parted = LocalStore(tmp_path / "whole"), LocalStore(tmp_path / "parted")
    expected = run(stage, store=whole)
    votes = itertools.count(1)
    with pytest.raises(StageInterrupted, match=f"after step {stop_after}"):
        run(stage, store=parted, should_stop=lambda: next(votes) >= stop_after)
    said = []
    found = run(stage, store=parted, report=said.append)
    assert (said[0].kind, said[0].step) == ("resumed", stop_after)
    folders = [where.fetch(f"stages/{stage.digest}") for where in (whole, parted)]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert found["metrics"] == expected["metrics"]
    assert {"cross_inductive_bias", "mutual"} <= load_network(folders[0]).extras.keys()
