"""Chat templates with tools, calls and reasoning, as those of real families write them."""

from __future__ import annotations

_CALLS = """{%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}"""

_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}"""

_RESULT = """{%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}"""

QWEN_2_5 = (
    _TOOLS
    + """
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        """  # noqa: E501
    + _CALLS
    + """
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        """
    + _RESULT
    + """
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
)
"""Tools in the system message; results as a user's turn."""

QWEN_3 = (
    _TOOLS
    + """
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        """  # noqa: E501
    + _CALLS
    + """
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        """
    + _RESULT
    + """
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
)
"""Writes the reasoning of what follows the last question, and drops that of earlier answers."""

LLAMA_3_1 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- if not tools is none %}
    {%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- 'Do not use variables.\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
"""Tools in the first question; one call at a time; no words beside a call, and no reasoning."""

MARKED = """{%- for message in messages %}
{%- if message.role == 'assistant' %}{% generation %}{{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""  # noqa: E501
"""Marks the header of an answer as the assistant's, as SmolLM3's does."""

MISTRAL = """{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- if tools is not none and message == user_messages[-1] %}{{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}{%- endif %}
        {{- "[INST] " + message.content + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message.role == "assistant" %}{{- " " + message.content | trim + eos_token }}
    {%- elif message.role == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + (message.content | tojson) + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""  # noqa: E501
"""Tools before the last question, calls in one list, each with an id of nine letters, which its result repeats; no
generation prompt, and no words beside calls."""

HERMES = """{{- bos_token }}
{%- if tools is iterable and tools | length > 0 %}
    {{- "<tools> " }}
    {%- for tool in tools %}{{- tool | tojson }}{%- if not loop.last %}{{- "\\n" }}{%- endif %}{%- endfor %}
    {{- " </tools><|im_end|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "system" or (message.role == "assistant" and message.tool_calls is not defined) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{ "arguments": ' }}{{- tool_call.function.arguments | tojson }}
            {{- ', "name": "' }}{{- tool_call.function.name }}{{- '"}\\n</tool_call> ' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' }}{{- message.content | tojson }}{{- '\\n</tool_response> <|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""  # noqa: E501
"""Arguments before the name, blanks in the JSON and behind the last mark; no words beside calls."""

PHI_4_MINI = """{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}
{%- elif tools %}{%- set system_message = "" %}{%- endif %}
{%- if system_message is defined %}
    {{- '<|system|>' + system_message }}
    {%- for tool in tools or [] %}{{- '<|tool|>' + (tool['function'] | tojson) + '<|/tool|>' }}{%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {{- '<|tool_response|>' + (message['content'] | tojson) + '<|end|>' }}
    {%- elif message['role'] != 'system' %}
        {{- '<|' + message['role'] + '|>' }}
        {%- if message.content %}{{- message['content'] }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {{- '<|tool_call|>' + (tool_call['function'] | tojson) + '<|/tool_call|>' }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- else %}{{- eos_token }}{%- endif %}"""
"""Marks that are special tokens on both sides of each call, and the end of the text behind the end of the answer."""

MISTRAL_SMALL = """{%- set system_message = messages[0].content if messages[0].role == 'system' else 'Be brief.' %}
{%- set loop_messages = messages[1:] if messages[0].role == 'system' else messages %}
{{- bos_token + '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- for message in loop_messages %}
    {%- if message.role == "user" %}
        {%- if tools is not none and message == user_messages[-1] %}{{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}{%- endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length < 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length >= 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id[-9:] + '"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message.role == "assistant" %}{{- message.content + eos_token }}
    {%- elif message.role == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id[-9:] + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""  # noqa: E501
"""As Mistral's before, with a system prompt of its own and no blank in front of an answer."""

COMMAND_R7B = """{{ tools | tojson }}{% for m in messages %}
{%- if m.role == 'user' %}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>
{%- elif m.tool_calls %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_ACTION|>[
{%- for call in m.tool_calls %}{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% if not loop.last %},{% endif %}{% endfor -%}
]<|END_ACTION|><|END_OF_TURN_TOKEN|>
{%- else %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>
{%- endif %}{% endfor %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"""  # noqa: E501
"""Words and calls end with marks of their own, and the name is a `tool_name`."""

DEEPSEEK_V3 = """{{ bos_token }}{{ tools | tojson }}{% for m in messages %}
{%- if m.role == 'user' %}<|User|>{{ m.content }}
{%- elif m.tool_calls %}<|Assistant|><|calls_begin|>{% for call in m.tool_calls %}<|call_begin|>{{ call.function.name }}<|sep|>{{ call.function.arguments | tojson }}<|call_end|>{% endfor %}<|calls_end|>{{ eos_token }}
{%- else %}<|Assistant|>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|Assistant|>{% endif %}"""  # noqa: E501
"""The name stands in front of the JSON."""

NEMOTRON_NANO = """<SPECIAL_10>System\n{{ tools | tojson }}\n{% for m in messages %}
{%- if m.role == 'user' %}<SPECIAL_11>User\n{{ m.content }}\n
{%- elif m.tool_calls %}<SPECIAL_11>Assistant\n<TOOLCALL>[{% for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{% endfor %}]</TOOLCALL>\n<SPECIAL_12>\n\n
{%- else %}<SPECIAL_11>Assistant\n<think>\n\n{{ m.content }}\n<SPECIAL_12>\n\n{% endif %}{% endfor %}
{%- if add_generation_prompt %}<SPECIAL_11>Assistant\n<think>\n\n{% endif %}"""  # noqa: E501
"""Opens the thoughts of the next answer, and writes a call without them."""
