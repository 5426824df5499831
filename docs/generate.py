"""The pages that are made from the code: commands, parameters, policy file, jobs, and the figure of the pipeline; and
the tables of results.md, calibration.md and the README, from the CSVs of the benchmarks.

    python docs/generate.py           # writes them
    python docs/generate.py --check   # exit code 1 and their names where one is not up to date

A test runs the second one. What the pages say is said in the code: in help texts, in comments behind the fields of the
settings, in the policy file's schema, in `STAGE_KEYS` and in the graph of jobs.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo

sys.path.insert(0, str(Path(__file__).parent))
import tables

from seam import settings
from seam.experiment import params
from seam.experiment.graph import Node, nodes
from seam.policy.schema import SCHEMA, schema

DOCS = Path(__file__).parent
NOTE = "<!-- Made by `python docs/generate.py`: change the code, not this page. -->\n\n"
MACHINES_OWN = ("threads",)  # options whose default depends on the machine; their help says which it is


def pages() -> dict[Path, str]:
    """Path -> content of every generated file."""
    return {
        DOCS / "reference/cli.md": NOTE + command_line(),
        DOCS / "reference/parameters.md": NOTE + parameters(),
        DOCS / "reference/policy.md": NOTE + policy_file(),
        DOCS / "reference/jobs.md": NOTE + jobs(),
        DOCS / "img/pipeline.svg": pipeline(),
        **{
            page: tables.fill(page.read_text(encoding="utf-8"))
            for page in (DOCS / "results.md", DOCS / "calibration.md", DOCS.parent / "README.md")
        },
    }


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines) + "\n"


# Commands


def command_line() -> str:
    """All commands with all options, from the functions behind them."""
    from seam.cli import app, stages

    text = "# Commands\n\n`seam COMMAND --help` prints the same. Exit codes: 0; 1 where a command says so; 2 for bad "
    text += "input, with one message on stderr.\n\n"
    panel = ""
    for command in app.registered_commands:
        if command.rich_help_panel != panel:
            panel = command.rich_help_panel
            text += f"## {panel}\n\n"
        text += f"### seam {command.callback.__name__}\n\n{_command(command.callback)}"
    text += (
        "## Stages that share their name with a command above\n\nWith `--params` they are stages of the pipeline.\n\n"
    )
    for command in stages.registered_commands:
        text += f"### seam {command.callback.__name__} with --params\n\n{_command(command.callback)}"
    return text.rstrip() + "\n"


def _command(function: Callable[..., Any]) -> str:
    kinds = get_type_hints(function, include_extras=True)
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, about = get_args(kinds[name])[:2]
        option = name.upper()
        if not isinstance(about, ArgumentInfo):  # what is declared first stands where a default would
            declared = [about.default, *about.param_decls] if isinstance(about.default, str) else []
            option = ", ".join(declared or ["--" + name.replace("_", "-")])
        default = parameter.default
        if default is inspect.Parameter.empty:
            shown = "required"
        else:
            shown = "" if name in MACHINES_OWN or default in (None, "", []) else f"`{default}`"
        rows.append((f"`{option}`", _kind(kind, about), shown, about.help or ""))
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(part.split()) for part in paragraphs)
    return f"{text}\n\n{table(('option', 'value', 'default', 'meaning'), rows)}"


def _kind(kind: Any, about: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    one = next((arg for arg in get_args(kind) if arg is not type(None)), kind)
    name = {int: "integer", float: "number", str: "text", Path: "path"}[one]
    name += ", repeatable" if get_origin(kind) is list else ""
    if about.min is not None and about.max is not None:
        return f"{name}, {about.min:g} to {about.max:g}"
    return f"{name}, at least {about.min:g}" if about.min is not None else name


# Parameters

BLOCKS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("", params.Params),
    ("grid", params.Grid),
    ("target", settings.Target),
    ("models.ALIAS", settings.Model),
    ("pretrain", settings.Training),
    ("search", settings.SearchSettings),
    ("searches.ALIAS.proxy", settings.Proxy),
    ("finetune", settings.Finetune),
    ("evaluate", settings.Evaluate),
    ("evaluate.reconstruct", settings.Reconstruction),
    ("claims", params.Claims),
    ("report", params.Report),
    ("mlflow", params.MLflow),
)


def parameters() -> str:
    """Every key of params.yaml: type, default, range, meaning, and the stages that depend on it."""
    text = "# Parameters, key by key\n\nWhat they are for is in [Parameters](../parameters.md). *Stages*: which jobs "
    text += (
        "depend on the key; a change reruns them and what follows them, nothing else. ALIAS is a name of your own.\n\n"
    )
    for prefix, block in BLOCKS:
        title = f"`{prefix}`" if prefix else "Top level"
        text += f"## {title}\n\n{' '.join(inspect.cleandoc(block.__doc__ or '').split())}\n\n"
        if prefix == "search":
            text += "Each key may also stand in `searches.ALIAS`, for that search alone.\n\n"
        if prefix in ("pretrain", "finetune"):
            fixed = ", ".join(f"`{key}`" for key in params._OF_JOBS if key in block.model_fields)
            text += f"Each key but {fixed} may also stand in `{prefix}.models.ALIAS`, for that model alone.\n\n"
        rows = [(f"`{key}`", *cells) for key, *cells in _rows(prefix, block)]
        text += table(("key", "type", "default", "range", "meaning", "stages"), rows)
        if prefix == "search":
            text += "## `searches.ALIAS`\n\nOne search.\n\n"
            rows = [
                (
                    "`searches.ALIAS.method`",
                    "text",
                    "required",
                    "",
                    "a file in `seam/search/`, or an importable module",
                ),
                ("`searches.ALIAS.proxy`", "block", "required", "", "the images that it sees, see below; or `none`"),
                ("`searches.ALIAS.*`", "", "", "", "any key of `search`"),
            ]
            text += table(
                ("key", "type", "default", "range", "meaning", "stages"),
                [(*row, _stages(row[0].strip("`").replace(".*", ""))) for row in rows],
            )
    return text.rstrip() + "\n"


def _rows(prefix: str, block: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    described = block.model_json_schema()
    needed = described.get("required", [])
    comments = field_comments(block)
    inner = {key.removesuffix(".ALIAS").removesuffix(".ALIAS.proxy") for key, _ in BLOCKS}
    for name, shape in described["properties"].items():
        key = ".".join(filter(None, [prefix, name]))
        if key in inner:
            continue
        if name not in comments:
            raise SystemExit(f"{block.__module__}.{block.__name__}.{name}: say in a comment behind it what it is")
        key += ".ALIAS" if key == "budgets" else ""
        kind, span = _shape(shape)
        span = span or _range(block.model_fields[name])
        default = "required" if name in needed else _default(shape.get("default"))
        yield key, kind, default, span, comments[name], _stages(key)


def field_comments(block: type[BaseModel]) -> dict[str, str]:
    """Field -> the comment behind it in the source, of the class and those above it."""
    comments: dict[str, str] = {}
    for kind in reversed(block.__mro__):
        if not issubclass(kind, BaseModel) or kind.__module__.startswith("pydantic"):
            continue
        lines = inspect.getsource(kind).splitlines()
        for node in ast.walk(ast.parse(inspect.getsource(kind))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found = re.search(r"\s# (.*)$", "\n".join(lines[node.lineno - 1 : node.end_lineno]), re.MULTILINE)
                if found:
                    comments[node.target.id] = found[1].strip()
    return comments


def _shape(shape: Mapping[str, Any]) -> tuple[str, str]:
    """(type, choices) in words."""
    one = next(option for option in shape.get("anyOf", [shape]) if option.get("type") != "null")
    if "enum" in one:
        return "one of", ", ".join(f"`{value}`" for value in one["enum"])
    if "prefixItems" in one:
        return " and ".join(_shape(item)[0] for item in one["prefixItems"]), ""
    if one.get("type") == "array":
        kind, span = _shape(one["items"])
        return "some of" if kind == "one of" else f"list of {kind}", span
    if one.get("type") == "object":
        inner = next(iter(one.get("patternProperties", {}).values()), one.get("additionalProperties"))
        return f"block: name -> {_shape(inner)[0] if isinstance(inner, Mapping) and inner else 'any value'}", ""
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
    return names[one["type"]], "letters, digits, `_`, `-`" if "pattern" in one else ""


def _range(field: FieldInfo) -> str:
    """The limits of a number, of a field or of the entries of its list."""
    words = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}
    numbers = {2**31: "2³¹", 2**32: "2³²"}
    found = {}

    def walk(annotation: Any) -> None:
        for part in get_args(annotation):
            for limit in getattr(part, "metadata", [part]):
                found.update({key: getattr(limit, key) for key in words if hasattr(limit, key)})
            walk(part)

    walk(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
    return ", ".join(words[key].format(numbers.get(found[key], found[key])) for key in words if key in found)


def _default(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict | list | tuple):
        return f"`[{', '.join(map(str, value))}]`" if value else "none"
    return f"`{value}`"


def _stages(key: str) -> str:
    """Stages whose jobs depend on a key."""
    parts = key.split(".")

    def covers(pattern: str) -> bool:
        own = [part if not part.startswith("{") else "ALIAS" for part in pattern.split(".")]
        return parts[: len(own)] == own

    return ", ".join(stage for stage, keys in params.STAGE_KEYS.items() if any(map(covers, keys)))


# The policy file


def policy_file() -> str:
    """Every key of policy.json, from its JSON Schema."""
    content = schema()
    text = f"# The policy file, key by key\n\nVersion `{SCHEMA}`. {content['description']} What is checked "
    text += "beyond the schema, and an example, is in [The policy file](../policy.md).\n\n"
    rows = list(_keys(content, content["$defs"], ""))
    return text + table(("key", "type", "needed", "meaning"), rows).rstrip() + "\n"


def _keys(shape: Mapping[str, Any], defs: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, value in shape.get("properties", {}).items():
        full = _resolved(value, defs)
        key, needed = prefix + name, "yes" if name in shape.get("required", []) else ""
        yield f"`{key}`", _json_type(full), needed, full.get("description", "")
        if full.get("type") == "array" and "$ref" in full["items"]:
            inner = full["items"]["$ref"].rsplit("/")[-1]
            yield f"`{key}[]`", f"as `{inner}`", "", ""
        elif name not in ("data_sha256", "software"):
            yield from _keys(full, defs, f"{key}.")
            if isinstance(full.get("additionalProperties"), Mapping):
                inner = _resolved(full["additionalProperties"], defs)
                yield f"`{key}.NAME`", _json_type(inner), "", inner.get("description", "")
                yield from _keys(inner, defs, f"{key}.NAME.")


def _resolved(value: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """The value with what it refers to; what stands at the place itself wins."""
    inner = defs[value["$ref"].rsplit("/")[-1]] if "$ref" in value else {}
    return {**inner, **value}


def _json_type(shape: Mapping[str, Any]) -> str:
    if "const" in shape:
        return f"`{shape['const']}`"
    if "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape["enum"])
    kinds = shape.get("type", "")
    name = kinds if isinstance(kinds, str) else " or ".join(kinds)
    low = shape.get("minimum", shape.get("exclusiveMinimum"))
    sign = "≥" if "minimum" in shape else ">"
    return f"{name}, {sign} {low}" if low is not None else name


# The graph of jobs


def _graph() -> list[Node]:
    """The jobs of a grid of one, whose names stand for any."""
    search = {"method": "jacobian", "proxy": {"dataset": "digits"}}
    raw = {
        "name": "any",
        "results": "RESULTS",
        "grid": {"models": ["MODEL"], "searches": ["SEARCH"], "budgets": ["BUDGET"], "seeds": [0]},
        "target": {"dataset": "fashion_mnist"},
        "models": {"MODEL": {"name": "resnet18"}},
        "pretrain": {"epochs": 1},
        "searches": {"SEARCH": search},
        "budgets": {"BUDGET": "w4a4"},
        "finetune": {"epochs": 1},
        "claims": {"baseline": "SEARCH"},
        "report": {"formats": ["svg"]},
    }
    return nodes(params.parse_params(raw))


def _path(path: Path) -> str:
    return str(path).removeprefix("RESULTS/").replace("/BUDGET/0/", "/BUDGET/SEED/")


def jobs() -> str:
    """What each stage reads and writes, how often it runs, and the parameters it depends on."""
    text = "# Jobs\n\nAll paths are below `results`. A job's folder also gets its `provenance.json` "
    text += "([what for](../engines.md#is-it-still-true-seam-verify)). The parameters are those that, when changed, "
    text += "run the job again.\n\n"
    for node in _graph():
        once = " x ".join(
            {"model": "models", "search": "searches", "budget": "budgets", "seed": "seeds"}[k] for k in node.job
        )
        text += f"## {node.stage}\n\n"
        keys = ", ".join(f"`{_named(key)}`" for key in params.STAGE_KEYS[node.stage])
        rows = [
            ("runs", f"once for each of {once}" if once else "once"),
            ("reads", ", ".join(f"`{_path(path)}`" for path in node.inputs) or "nothing"),
            ("writes", ", ".join(f"`{_path(path)}`" for path in node.outputs)),
            ("parameters", keys),
        ]
        text += table(("", ""), rows)
    return text.rstrip() + "\n"


def _named(pattern: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), pattern)


def edges() -> dict[tuple[str, str], list[str]]:
    """(stage that writes, stage that reads) -> names of the files."""
    graph = _graph()
    maker = {path: node.stage for node in graph for path in node.outputs}
    found: dict[tuple[str, str], list[str]] = {}
    for node in graph:
        for path in node.inputs:
            found.setdefault((maker[path], node.stage), []).append(path.name)
    return found


STEP, TOP, LEFT, WIDTH, HEIGHT, LANE = 62, 24, 24, 210, 34, 56  # pixels


def pipeline() -> str:
    """The stages from above to below; on the right which files one reads of an earlier one."""
    stages = [node.stage for node in _graph()]
    times = {node.stage: " x ".join(node.job) for node in _graph()}
    y = {stage: TOP + i * STEP for i, stage in enumerate(stages)}
    right = LEFT + WIDTH
    parts = []
    readers: dict[str, list[str]] = {}
    for (first, second), names in edges().items():
        if stages.index(second) - stages.index(first) > 1:
            readers.setdefault(first, []).append(second)
            continue
        middle, start, end = LEFT + WIDTH / 2, y[first] + HEIGHT, y[second]
        parts.append(f'<path d="M{middle} {start}V{end - 2}" class="line" marker-end="url(#tip)"/>')
        parts.append(f'<text x="{middle + 8}" y="{(start + end) / 2 + 4}" class="small">{_few(names)}</text>')
    lanes = sorted(readers, key=stages.index, reverse=True)
    for number, first in enumerate(lanes):  # a line down from the stage, with a branch to each that reads of it
        x, start = right + LANE * (number + 1), y[first] + HEIGHT - 4
        ends = [y[second] + 5 + 3 * number for second in readers[first]]
        parts.append(f'<path d="M{right} {start}H{x}V{max(ends)}" class="skip"/>')
        parts += [f'<path d="M{x} {end}H{right + 2}" class="skip" marker-end="url(#tip)"/>' for end in ends]
        parts.append(f'<text x="{x + 4}" y="{start + 11}" class="small">{first}</text>')
    for stage in stages:
        parts.append(f'<rect x="{LEFT}" y="{y[stage]}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>')
        parts.append(f'<text x="{LEFT + 10}" y="{y[stage] + 15}">{stage}</text>')
        each = f"each {times[stage]}" if times[stage] else "once"
        parts.append(f'<text x="{LEFT + 10}" y="{y[stage] + 28}" class="small">{each}</text>')
    width, height = right + LANE * (len(lanes) + 2), TOP + STEP * len(stages)
    style = (
        "rect{fill:#eaf1fb;stroke:#27548a}text{font:13px sans-serif;fill:#1d2733}.small{font-size:10px;fill:#46535f}"
        ".line{stroke:#27548a;fill:none;stroke-width:1.6}.skip{stroke:#8a97a5;fill:none}"
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip += '<path d="M0 0L8 4L0 8z" fill="#27548a"/></marker>'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="stages of the pipeline">\n<style>{style}</style>\n<defs>{tip}</defs>\n'
        f'<rect width="{width}" height="{height}" style="fill:#fff;stroke:none"/>\n{body}\n</svg>\n'
    )


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def main() -> None:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        if stale:
            print("run python docs/generate.py; not up to date:", *(path.relative_to(DOCS.parent) for path in stale))
        sys.exit(bool(stale))
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
