"""The OpenAPI document as a page to read: one file, no scripts, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from roost.server.openapi import Document

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1a1d21; --line: #d8dce2; --soft: #f4f5f7; --dim: #5b6370;
  --get: #0b6e4f; --post: #1f4fa8; --bad: #a12622 }
@media (prefers-color-scheme: dark) { :root { --page: #16191e; --text: #e4e7eb; --line: #363b44; --soft: #1f2329;
  --dim: #9aa3b0; --get: #56c596; --post: #7aa7f7; --bad: #f08a84 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  background: var(--page); color: var(--text) }
h1 { margin: 0 } h2 { margin: 2.2rem 0 .2rem } h3 { margin: 1rem 0 .3rem; font-size: .95rem }
p { margin: .3rem 0 } .dim { color: var(--dim) } a { color: inherit }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin-top: 1rem }
code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: var(--soft); padding: .7rem; border-radius: 6px; overflow-x: auto; margin: .3rem 0 }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0 }
details details { border-style: dashed }
summary { padding: .45rem .7rem; cursor: pointer; display: flex; flex-wrap: wrap; gap: .2rem .8rem;
  align-items: baseline }
summary:hover { background: var(--soft) }
details > div { padding: .2rem .9rem .8rem; border-top: 1px solid var(--line); overflow-x: auto }
.get, .post { font-weight: 700; width: 3.2rem } .get { color: var(--get) } .post { color: var(--post) }
table { border-collapse: collapse; width: 100% } td { padding: .25rem .8rem .25rem 0; vertical-align: top }
td:first-child { white-space: nowrap } .bad { color: var(--bad) }
"""


def render(document: Document) -> str:
    """Writes the page."""
    return "".join(_page(document))


def _page(document: Document) -> Iterator[str]:
    info = document["info"]
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><h1>{escape(info['title'])} "
    yield f'<span class="dim">{escape(info["version"])}</span></h1><p>{escape(info["description"])}</p>'
    yield '<p class="dim">These calls are answered on the HTTP port, which also serves this document as '
    yield "<code>/openapi.json</code>.</p><nav>"
    groups = {tag["name"]: _operations(document, tag["name"]) for tag in document["tags"]}
    for index, name in enumerate(groups):
        yield f'<a href="#g{index}">{escape(name)}</a>'
    yield '<a href="#schemas">Schemas</a></nav>'
    for index, tag in enumerate(document["tags"]):
        yield f'<h2 id="g{index}">{escape(tag["name"])}</h2><p class="dim">{escape(tag["description"])}</p>'
        for method, path, operation in groups[tag["name"]]:
            yield from _operation(document, method, path, operation)
    yield '<h2 id="schemas">Schemas</h2>'
    for name, schema in document["components"]["schemas"].items():
        # The target is inside, because browsers open what hides it.
        yield f'<details><summary><b>{escape(name)}</b></summary><div id="s-{escape(name)}">'
        yield from _schema(schema)
        yield "<details><summary class='dim'>JSON Schema</summary><div><pre>"
        yield escape(json.dumps(schema, indent=2, ensure_ascii=False)) + "</pre></div></details></div></details>"
    yield "</body></html>"


def _operations(document: Document, tag: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if tag in operation["tags"]
    ]


def _operation(document: Document, method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<details><summary><span class="{escape(method)}">{escape(method.upper())}</span><code>{escape(path)}</code>'
    yield f'<span class="dim">{escape(operation["summary"])}</span></summary><div>'
    if text := operation.get("description"):
        yield f"<p>{escape(text)}</p>"
    if operation["parameters"]:
        yield "<h3>Parameters</h3><table>"
        for parameter in operation["parameters"]:
            yield f"<tr><td><code>{escape(parameter['name'])}</code></td><td>in {escape(parameter['in'])}</td>"
            yield f"<td>{escape(parameter['description'])}</td></tr>"
        yield "</table>"
    if body := operation.get("requestBody"):
        yield f"<h3>Body{'' if body['required'] else ' (optional)'}</h3>"
        yield from _contents(document, body["content"])
    yield "<h3>Answers</h3><table>"
    for status, response in operation["responses"].items():
        mark = "good" if status == "200" else "bad"
        yield f'<tr><td class="{mark}">{status}</td><td>{escape(response["description"])}'
        yield from _contents(document, response.get("content", {}))
        yield "</td></tr>"
    yield "</table></div></details>"


def _contents(document: Document, content: Mapping[str, Any]) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    for content_type, media in content.items():
        schema = media["schema"]
        what = f'<code>{escape(content_type)}</code> <span class="dim">{_type(schema)}</span>'
        inner = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if len(inner.get("properties", ())) > 1:
            yield f"<details><summary>{what}</summary><div>"
            yield from _schema(inner)
            yield "</div></details>"
        else:
            yield f"<p>{what}</p>"


def _schema(schema: Mapping[str, Any]) -> Iterator[str]:
    if text := schema.get("description"):
        yield f"<p>{escape(text)}</p>"
    if properties := schema.get("properties"):
        required = schema.get("required", ())
        yield "<table>"
        for name, inner in properties.items():
            mark = "" if name in required else ' <span class="dim">optional</span>'
            yield f"<tr><td><code>{escape(name)}</code>{mark}</td><td>{_type(inner)}</td>"
            yield f"<td>{escape(inner.get('description', ''))}"
            if "properties" in inner:
                yield from _schema({key: value for key, value in inner.items() if key != "description"})
            yield "</td></tr>"
        yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if target := schema.get("$ref"):
        name = escape(target.rpartition("/")[2])
        return f'<a href="#s-{name}">{name}</a>'
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    kinds = schema.get("type", "anything")
    text = kinds if isinstance(kinds, str) else " | ".join(kinds)
    return f"array of {_type(schema['items'])}" if "items" in schema else escape(text)
