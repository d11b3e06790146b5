"""Lines of Jinja in front of a family's chat template: what it has no place for is written into the
turns it has, before it sees them.
"""

WORDS = {
    "tools": "functions are listed in the system turn, as JSON",
    "calls": 'calls are written as text, [name(argument="value", flag=True)]',
    "tool_turns": "what a tool gave is a turn of the user's",
    "system": "the system turn opens the first turn of the user",
}


def preface(lacks: set[str], has_system: bool) -> str:
    """Jinja that rewrites `messages` and `tools` before the family's own template sees them.

    lacks: of the names in `WORDS`; has_system: whether the template takes a system turn.
    """
    merges = str("tool_turns" in lacks).lower()
    into_user = "system" in lacks or ("tools" in lacks and not has_system)
    return f"""{{#- loki-ds: {"; ".join(WORDS[name] for name in WORDS if name in lacks)}. -#}}
{{%- set loki = namespace(out=[], system="", content="") -%}}
{{%- if tools is not defined %}}{{% set tools = none %}}{{% endif -%}}
{_TOOLS if "tools" in lacks else ""}
{_LITERAL if "calls" in lacks else ""}
{{%- for message in messages -%}}
{{%- set loki.content = message.content or "" -%}}
{_CALLS if "calls" in lacks else ""}
{{%- if message.role == "system" and {str(bool("tools" in lacks or into_user)).lower()} -%}}
{{%- set loki.system = (loki.content + "\\n\\n" + loki.system) if loki.system else loki.content -%}}
{{%- elif message.role == "tool" and {str("tool_turns" in lacks).lower()} -%}}
{{%- if loki.out and loki.out[-1].role == "user" -%}}
{{%- set loki.out = loki.out[:-1] + [{{"role": "user", "content": loki.out[-1].content + "\\n" + loki.content}}] -%}}
{{%- else -%}}
{{%- set loki.out = loki.out + [{{"role": "user", "content": loki.content}}] -%}}
{{%- endif -%}}
{{%- elif {merges} and message.role == "user" and loki.out and loki.out[-1].role == "user" -%}}
{{%- set loki.out = loki.out[:-1] + [{{"role": "user", "content": loki.out[-1].content + "\\n\\n" + loki.content}}] -%}}
{_WRITTEN if "calls" in lacks else ""}
{{%- else -%}}
{{%- set loki.out = loki.out + [message] -%}}
{{%- endif -%}}
{{%- endfor -%}}
{_INTO_USER if into_user else _INTO_SYSTEM}
{{%- set messages = loki.out -%}}
"""


_TOOLS = """{%- if tools -%}
{%- set loki.system = "Here is a list of functions in JSON format that you can invoke:\\n" + (tools | tojson) -%}
{%- set tools = none -%}
{%- endif -%}"""
# As Python writes it, which is what reads such calls (serving's parsers, BFCL's judge).
_LITERAL = """{%- macro loki_literal(value) -%}
{%- if value is none -%}None
{%- elif value is boolean -%}{{ "True" if value else "False" }}
{%- elif value is string -%}{{ value | tojson }}
{%- elif value is mapping -%}
{{- "{" -}}
{%- for key, part in value.items() -%}
{{ key | tojson }}: {{ loki_literal(part) }}{{ ", " if not loop.last }}
{%- endfor -%}
{{- "}" -}}
{%- elif value is iterable -%}
{{- "[" -}}{%- for part in value -%}{{ loki_literal(part) }}{{ ", " if not loop.last }}{%- endfor -%}{{- "]" -}}
{%- else -%}{{ value }}
{%- endif -%}
{%- endmacro -%}"""
_CALLS = """{%- if message.tool_calls -%}
{%- set call = namespace(all=[]) -%}
{%- for one in message.tool_calls -%}
{%- set one = one.function or one -%}
{%- set call.named = [] -%}
{%- for key, value in (one.arguments or {}).items() -%}
{%- set call.named = call.named + [key ~ "=" ~ loki_literal(value)] -%}
{%- endfor -%}
{%- set call.all = call.all + [one.name ~ "(" ~ (call.named | join(", ")) ~ ")"] -%}
{%- endfor -%}
{%- set loki.content = (loki.content ~ "\\n" if loki.content else "") ~ "[" ~ (call.all | join(", ")) ~ "]" -%}
{%- endif -%}"""
_WRITTEN = """{%- elif message.tool_calls -%}
{%- set loki.out = loki.out + [{"role": "assistant", "content": loki.content}] -%}"""
_INTO_SYSTEM = """{%- if loki.system -%}
{%- set loki.out = [{"role": "system", "content": loki.system}] + loki.out -%}
{%- endif -%}"""
_INTO_USER = """{%- if loki.system and loki.out -%}
{%- set first = {"role": loki.out[0].role, "content": loki.system + "\\n\\n" + loki.out[0].content} -%}
{%- set loki.out = [first] + loki.out[1:] -%}
{%- endif -%}"""
