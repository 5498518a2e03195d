"""The catalogue's arithmetic against real timm networks, and its refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specs.model import ModelSpec
from strategies import catalog
from strategies.catalog import UnknownModelError, facts_of

CASES = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}),
    (
        "vit_tiny_patch16_224",
        {"num_classes": 10, "in_chans": 1, "mlp_ratio": 3.5, "img_size": [32, 32], "patch_size": 4},
    ),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"reg_tokens": 4, "drop_path_rate": 0.1, "qk_norm": True, "init_values": 1e-5}),
    ("vit_tiny_patch16_224", {"global_pool": "map", "depth": 2}),
    ("vit_tiny_patch16_224", {"scale_mlp_norm": True, "depth": 2}),
    ("vit_tiny_patch16_224", {"attn_layer": "diff", "depth": 2, "num_heads": 6}),
    ("vit_small_patch16_224.dino", {}),
    ("vit_base_patch16_224.augreg_in21k", {"depth": 2}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 224, "depth": 3}),
    ("vit_giant_patch14_dinov2", {"depth": 2}),
    ("vit_base_patch16_siglip_224", {"depth": 2}),
    ("vit_so400m_patch14_siglip_384", {"depth": 2}),
    ("vit_wee_patch16_reg1_gap_256", {}),
    ("vit_pwee_patch16_reg1_gap_256", {}),
    ("vit_small_patch16_18x2_224", {"depth": 2}),
    ("vit_dwee_patch16_reg1_gap_256", {"depth": 2}),
    ("deit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "num_classes": 100}),
    ("deit_tiny_distilled_patch16_224", {"img_size": 96}),
    ("deit3_small_patch16_224", {"depth": 5}),
    ("vit_base_patch32_clip_224", {"depth": 1}),
    ("vit_medium_patch16_gap_240", {"depth": 2}),
    ("resnet18", {"num_classes": 10}),
    ("swin_tiny_patch4_window7_224", {"img_size": 224}),
    ("beit_base_patch16_224", {"depth": 2}),
]


@pytest.mark.parametrize(("model", "args"), CASES, ids=[f"{m}-{i}" for i, (m, _) in enumerate(CASES)])
def test_facts_equal_those_of_the_real_network(model, args, tmp_path, monkeypatch):
    from strategies.catalog_build import one

    real = one(model, args)
    # The second process is tested apart; here it would only repeat the line above.
    monkeypatch.setattr(catalog, "_ask", lambda name, options: one(name, options))
    catalog._facts.cache_clear()
    assert facts_of(ModelSpec(model=model, args=args)) == real
    assert len(real.tap_widths) == real.depth


def test_family_vit_is_what_the_explicit_loop_runs():
    from strategies.catalog_build import on_meta
    from strategies.compose import runs_in_loop

    for model in (
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "vit_pwee_patch16_reg1_gap_256",
        "resnet18",
    ):
        facts = facts_of(ModelSpec(model=model))
        assert (facts.family == "vit") == runs_in_loop(on_meta(model))
        assert (facts.why_not_vit is None) == (facts.family == "vit")


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 50}, ["embed_dim", "num_heads", "1 or 2", "48"]),
        ("vit_tiny_patch16_224", {"img_size": 30}, ["30 px", "16 px", "16 or 32", "patch_size` 15"]),
        ("vit_tiny_patch16_224", {"class_token": False}, ["global_pool: avg"]),
        ("vit_tiny_patch16_224", {"depth": "12"}, ["depth", "'12'"]),
        ("vit_tiny_patch16_224", {"depth": True}, ["depth"]),
        ("vit_tiny_patch16_224", {"depth": 0}, ["depth", "at least 1"]),
        ("vit_tiny_patch16_224", {"global_pool": "sum"}, ["sum", "avg"]),
        ("vit_tiny_patch16_224", {"img_size": [32, 64]}, ["square"]),
        ("deit_tiny_distilled_patch16_224", {"global_pool": "avg"}, ["distill"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_a_way_out(model, args, said):
    with pytest.raises(ValueError, match="Way out") as error:
        facts_of(ModelSpec(model=model, args=args))
    assert not isinstance(error.value, UnknownModelError)
    for text in [model, *said]:
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("model", "args", "near"),
    [
        ("vit_tiny_patch16_22", {}, "`vit_tiny_patch16_224`"),
        ("vit_tiny_patch16_224", {"embed_dims": 48}, "`embed_dim`"),
        ("vit_small_patch16_224.dinoo", {}, "`vit_small_patch16_224.dino`"),
    ],
)
def test_unknown_names_bring_the_nearest(model, args, near):
    with pytest.raises(UnknownModelError, match="Way out") as error:
        facts_of(ModelSpec(model=model, args=args))
    assert near in str(error.value)


def test_other_families_are_asked_once_and_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    catalog._facts.cache_clear()
    spec = ModelSpec(model="resnet10t", args={"num_classes": 7})
    facts = facts_of(spec)
    assert (facts.family, facts.num_classes, facts.depth) == ("other", 7, 5)
    assert "ResNet" in (facts.why_not_vit or "")
    assert len(list((tmp_path / "slimvit" / "facts").glob("*.json"))) == 1

    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked a second time")

    monkeypatch.setattr(subprocess, "run", unreachable)
    catalog._facts.cache_clear()
    assert facts_of(spec) == facts


def test_a_damaged_answer_on_disk_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = ModelSpec(model="resnet10t", args={"num_classes": 7})
    catalog._facts.cache_clear()
    facts = facts_of(spec)
    (answer,) = (tmp_path / "slimvit" / "facts").glob("*.json")
    answer.write_text("{", encoding="utf-8")
    catalog._facts.cache_clear()
    assert facts_of(spec) == facts
    assert catalog._read(answer) == facts


def test_timm_itself_names_the_unknown_argument(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UnknownModelError, match=r"`num_clases`.*`num_classes`"):
        facts_of(ModelSpec(model="resnet10t", args={"num_clases": 7}))
    assert not list(tmp_path.rglob("*.json"))


def test_takes_image_size():
    assert catalog.takes_image_size("vit_tiny_patch16_224.augreg_in21k")
    assert catalog.takes_image_size("swin_tiny_patch4_window7_224")
    assert not catalog.takes_image_size("resnet18")


def test_the_catalogue_loads_neither_torch_nor_timm():
    code = (
        "import sys; from specs.model import ModelSpec; from strategies.catalog import facts_of;"
        "facts_of(ModelSpec(model='vit_tiny_patch16_224')); print({'torch', 'timm'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
