"""YAML file + `key.sub=value` overrides -> a checked config, and the record of where each value came from."""

import copy
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from megatron_urpo.config.checks import ConfigError, check_config
from megatron_urpo.config.describe import inline_yaml
from megatron_urpo.config.schema import Config
from megatron_urpo.config.section import Section

S = TypeVar("S", bound=Section)


def load_config(path: Path, overrides: Sequence[str] = ()) -> tuple[Config, str]:
    """The config of a training run and its resolved text (see `resolved_yaml`). Raises ConfigError."""
    config, text = load_section(Config, path, overrides)
    check_config(config)
    return config, text


def load_section(schema: type[S], path: Path, overrides: Sequence[str] = ()) -> tuple[S, str]:
    """As `load_config`, for any schema, without the checks that span sections."""
    tree = _read_yaml(path)
    origins = dict.fromkeys(_leaves(tree), f"from {path.name}")
    for text in overrides:
        keys, value = _parse_override(text)
        _set(tree, keys, value, text)
        origins = {k: v for k, v in origins.items() if k[: len(keys)] != keys}
        origins |= dict.fromkeys(_leaves(value, keys), "from the command line")
    config = _validated(schema, tree)
    return config, resolved_yaml(config, origins)


def override_defaults(schema: type[S], overrides: Sequence[str]) -> S:
    """The defaults of a schema with changes, without a file. Raises ConfigError."""
    tree: dict[str, Any] = {}
    for text in overrides:
        _set(tree, *_parse_override(text), text)
    return _validated(schema, tree)


def restore_config(values: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The config of a training run that was kept as `model_dump(mode="json")`, with changes. Raises ConfigError."""
    tree = copy.deepcopy(values)
    for text in overrides:
        _set(tree, *_parse_override(text), text)
    config = _validated(Config, tree)
    check_config(config)
    return config


def resolved_yaml(config: Section, origins: dict[tuple[str, ...], str]) -> str:
    """Every value as YAML that loads again, each followed by a comment that says where it came from."""
    lines: list[str] = []

    def write(tree: dict[str, Any], prefix: tuple[str, ...]) -> None:
        for key, value in tree.items():
            here, indent = (*prefix, key), "  " * len(prefix)
            if isinstance(value, dict) and value:
                lines.append(f"{indent}{key}:")
                write(value, here)
            else:
                lines.append(f"{indent}{key}: {inline_yaml(value)}  # {origins.get(here, 'default')}")

    write(config.model_dump(mode="json"), ())
    return "\n".join(lines) + "\n"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"config: {path} does not exist; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config: {path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {path} holds {type(tree).__name__}, not a mapping of sections")
    return tree


def _validated(schema: type[S], tree: dict[str, Any]) -> S:
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(schema, item) for item in error.errors())) from None


def _leaves(value: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        return [leaf for key, sub in value.items() for leaf in _leaves(sub, (*prefix, str(key)))]
    return [prefix]


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override: {text!r} has no `=`; write key.sub=value, e.g. optimizer.lr=1e-6")
    try:
        # YAML 1.1 reads 1e-6 as a string; pydantic turns it into a number where a number is due.
        return tuple(key.split(".")), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override: the value of {text!r} is not readable as YAML; quote it") from None


def _set(tree: dict[str, Any], keys: tuple[str, ...], value: Any, text: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override: {text!r} goes below {key!r}, which holds a plain value")
    tree[keys[-1]] = value


def _explain(schema: type[BaseModel], item: Any) -> str:
    """One line for one pydantic error: field, value, rule, and the nearest name for an unknown key."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _keys_at(schema, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return f"{location}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{location}: is missing; it has no default, so the config must give it"
    return f"{location}: {item['msg']}, got {item['input']!r}"


def _keys_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    fields = schema.model_fields
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = fields[part].annotation if part in fields else None
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                fields = candidate.model_fields
                break
    return list(fields)
