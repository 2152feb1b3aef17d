"""All user input: the schema with its defaults, the checks, and how a file becomes a config."""

from megatron_urpo.config.checks import ConfigError, check_config
from megatron_urpo.config.describe import reference
from megatron_urpo.config.load import load_config, load_section, override_defaults, restore_config
from megatron_urpo.config.schema import Config, ScoreConfig, SftConfig

__all__ = [
    "Config", "ConfigError", "ScoreConfig", "SftConfig", "check_config", "load_config", "load_section",
    "override_defaults", "reference", "restore_config",
]  # fmt: skip
