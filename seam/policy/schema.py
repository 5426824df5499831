"""The JSON Schema of the policy file, and what of a file does not fit it, in words."""

import functools
import json
from importlib.resources import files
from typing import Any

from seam.errors import SeamError, shortened, shown, unknown

SCHEMA = "seam-policy/1"
_FILES = {SCHEMA: "policy-1.json"}  # the versions that this seam reads
_MOST = 5  # problems in one message


@functools.cache
def schema(version: str = SCHEMA) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a version of the policy file. Do not change it."""
    return json.loads((files("seam.policy") / _FILES[version]).read_text(encoding="utf-8"))


@functools.cache
def _validator(version: str) -> Any:
    from jsonschema import Draft202012Validator  # takes long to import, and only files need it

    return Draft202012Validator(schema(version))


def check_schema(policy: Any, where: object) -> None:
    """Raise SeamError, naming `where` and each key that does not fit, unless this is a policy of a readable version."""
    version = policy.get("schema") if isinstance(policy, dict) else None
    if not isinstance(version, str) or version not in _FILES:
        found = f"schema {shown(version)}" if isinstance(policy, dict) else f"a JSON {type(policy).__name__}"
        raise SeamError(
            f'{where}: not a policy that this version of seam reads; found {found}, needs "schema": {", ".join(_FILES)}'
        )
    errors = sorted(_validator(version).iter_errors(policy), key=lambda error: [str(key) for key in error.path])
    if errors:
        more = f"; and {len(errors) - _MOST} more" if len(errors) > _MOST else ""
        raise SeamError(f"{where}: {'; '.join(map(_explain, errors[:_MOST]))}{more}")


def _explain(error: Any) -> str:
    """One problem: where it is, what would be right, what was found."""
    path = list(error.path)
    if path[:1] == ["layers"] and len(path) > 1:
        path[:2] = [f"layer {shortened(path[1])}"]
    place = f"{': '.join(map(str, path))}: " if path else ""
    rule, wanted, found = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties" and wanted is False:
        known = error.schema["properties"]
        extra = [key for key in found if key not in known]
        more = f"; and {len(extra) - _MOST} more" if len(extra) > _MOST else ""
        return place + "; ".join(str(unknown("key", key, known)) for key in extra[:_MOST]) + more
    if rule == "required":
        lacking = [repr(key) for key in wanted if key not in found]
        return f"{place}lacks {', '.join(lacking)}"
    if rule == "type":
        names = {"array": "a list", "integer": "an integer", "object": "an object", "null": "null"}
        kinds = wanted if isinstance(wanted, list) else [wanted]
        return f"{place}must be {' or '.join(names.get(kind, f'a {kind}') for kind in kinds)}, found {shown(found)}"
    text = (
        f"must be one of {', '.join(map(str, wanted))}, found {shown(found)}"
        if rule == "enum"
        else shortened(error.message)
    )
    about = error.schema.get("description", "")
    return f"{place}{text}{f' ({about})' if about else ''}"
