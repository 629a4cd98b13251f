"""The walk to the published weights and through a stream, at narrow widths; at full width where asked for."""

import pytest

from rainlab.config import make_preset, override
from rainlab.measure import paper_scale

KL = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
CLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "projection_dim": 24, "image_size": 224, "patch_size": 56}  # fmt: skip
NARROW = {"model.channels": (32, 32), "model.norm_groups": 8, "model.heads": 2, "model.cross_attention_dim": 24}


def test_stand_ins_load_as_the_published_files_do_and_stream(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    preset = make_preset("paper", NARROW)
    run = paper_scale.walk(preset, 64, kl=KL, clip=CLIP)
    said = capsys.readouterr().out
    assert [row["tick"] for row in run.metrics() if row["metric"] == "tick_seconds"] == [1, 2, 3, 4]
    assert run.value("file_bytes")["value"] > 1e5 and said.count(" GB") == 7
    assert run.value("peak_bytes", after="tick_seconds", tick=4)["value"] > 1e8
    assert paper_scale.walk(preset, 64).metrics() == run.metrics() and not capsys.readouterr().out
    found = paper_scale.write_stand_ins(tmp_path / "files", preset, KL, CLIP)
    assert found == override(
        preset, {"autoencoder.path": found.autoencoder.path, "model.context_path": found.model.context_path}
    )


@pytest.mark.slow
def test_the_paper_s_model_streams_within_20_gib(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    assert paper_scale.walk().value("peak_bytes", after="tick_seconds", tick=4)["value"] < 20 * 2**30
