"""The reference of all values a config can set, as YAML: each with its default and what it means."""

import json
from typing import Any

import yaml
from pydantic import BaseModel


def reference(schema: type[BaseModel], defaults: BaseModel | None = None, depth: int = 0) -> str:
    """Every field of `schema`, sections indented. A field without a default is written as `key:` and says so.

    `defaults`: a section whose values stand for the schema's own.
    """
    lines = []
    for name, field in schema.model_fields.items():
        indent, meaning = "  " * depth, field.description or ""
        section = field.annotation
        required = defaults is None and field.is_required()
        default = field.default if defaults is None else getattr(defaults, name)
        if isinstance(section, type) and issubclass(section, BaseModel):
            inner = default if isinstance(default, BaseModel) else None
            lines += [f"{indent}{name}:", reference(section, inner, depth + 1)]
            continue
        if required:
            value, meaning = "", f"required; {meaning}".removesuffix("; ")
        else:
            value = f" {inline_yaml(default)}"
        lines.append(f"{indent}{name}:{value}{f'  # {meaning}' if meaning else ''}")
    return "\n".join(lines)


def inline_yaml(value: Any) -> str:
    """`value` as YAML on one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)  # YAML reads JSON strings, and its own styles would break the line
    if isinstance(value, tuple | list):
        value = [item.model_dump(exclude_none=True) if isinstance(item, BaseModel) else item for item in value]
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
