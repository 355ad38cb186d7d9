"""Tools as the TypeScript text the models read; its tokens are prompt tokens."""

import json
from typing import Any


def render_tools(functions: list[dict[str, Any]]) -> str:
    """Return the `namespace functions { ... }` text of a request's function definitions."""
    lines = ["namespace functions {", ""]
    for function in functions:
        if function.get("description"):
            lines.append(f"// {function['description']}")
        parameters = function.get("parameters") or {}
        if parameters.get("properties"):
            lines.append(f"type {function.get('name', '')} = (_: {{")
            lines.extend(_properties(parameters, indent=0))
            lines.append("}) => any;")
        else:
            lines.append(f"type {function.get('name', '')} = () => any;")
        lines.append("")
    lines.append("} // namespace functions")
    return "\n".join(lines)


def _properties(schema: dict[str, Any], indent: int) -> list[str]:
    lines = []
    required = schema.get("required") or []
    for name, value in (schema.get("properties") or {}).items():
        prop = value if isinstance(value, dict) else {}
        # Only the two top levels keep their descriptions.
        if prop.get("description") and indent < 4:
            lines.append(f"// {prop['description']}")
        optional = "" if name in required else "?"
        lines.append(f"{name}{optional}: {_type(prop, indent)},")
    return [" " * indent + line for line in lines]


def _type(prop: dict[str, Any], indent: int) -> str:
    if isinstance(prop.get("enum"), list):
        return " | ".join(json.dumps(item) for item in prop["enum"])
    kind = prop.get("type")
    if kind in {"integer", "number"}:
        return "number"
    if kind == "array":
        items = prop.get("items")
        return f"{_type(items, indent)}[]" if isinstance(items, dict) else "any[]"
    if kind == "object":
        return "\n".join(("{", *_properties(prop, indent + 2), "}"))
    return kind if kind in {"string", "boolean", "null"} else "any"
