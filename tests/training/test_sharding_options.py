"""What a launcher says of FSDP is followed or refused by name."""

import os

import pytest

from ldm.config.settings import LdmSettings
from ldm.training import sharding_options
from ldm.training.sharding_options import ShardingOptions, asked, check_settings, read, take_over
from ldm.utils.errors import UserError


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """As a launcher with two processes starts this one."""
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sharding_options, "_asked", None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_it_is_taken_over_from_accelerate(monkeypatch):
    take_over()
    assert asked() == ShardingOptions() and "ACCELERATE_USE_FSDP" not in os.environ
    take_over()
    assert asked() == ShardingOptions()  # a second stage
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert asked() is None


def test_options_are_followed(monkeypatch):
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "DownBlock2D, CLIPEncoderLayer")
    assert read() == ShardingOptions(False, ("DownBlock2D", "CLIPEncoderLayer"))
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    assert read() == ShardingOptions(False, ())


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("FSDP_VERSION", "1", "version 1; only 2 is supported"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params, which is not supported"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "True", "set it to false and train.gradient_checkpointing to true"),
        ("FSDP_FORWARD_PREFETCH", "true", "fsdp_forward_prefetch"),
        ("FSDP_IGNORED_MODULES", "unet", "fsdp_ignored_modules unet"),
        ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT", "set SHARDED_STATE_DICT"),
        ("FSDP_RESHARD_AFTER_FORWARD", "FULL_SHARD", "fsdp_reshard_after_forward full_shard: set it to true or false"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP .* and NO_WRAP"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(monkeypatch, variable, value, line):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=line):
        take_over()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train": {"ema_offload": True}}, "train.ema_offload is not supported with FSDP: FSDP divides the average"),
        ({"optim": {"name": "adamw8bit"}}, "optim.name adamw8bit is not supported with FSDP"),
        ({"optim": {"name": "muon"}}, "optim.name muon is not supported with FSDP"),
        ({"train": {"compile": True}}, "train.compile is not supported with FSDP"),
        ({"alignment": {"weight": 0.5}}, "alignment.weight is not supported with FSDP"),
        ({"start": {"model": "m", "lora_rank": 4}}, "start.lora_rank is not supported with FSDP"),
    ],
)
def test_settings_that_need_whole_weights_are_refused_by_name(changes, line):
    check_settings(LdmSettings(**changes), "no")  # nobody asked for shards
    take_over()
    check_settings(LdmSettings(), "bf16")
    with pytest.raises(UserError, match=line):
        check_settings(LdmSettings(**changes), "no")


def test_scaled_losses_and_a_compiled_model_are_refused(monkeypatch):
    take_over()
    with pytest.raises(UserError, match="mixed precision fp16 is not supported with FSDP"):
        check_settings(LdmSettings(), "fp16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(UserError, match="dynamo backend inductor is not supported with FSDP"):
        check_settings(LdmSettings(), "no")
