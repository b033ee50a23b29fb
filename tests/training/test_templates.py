"""What is learnt of a chat is what transformers' own mask of the assistant's words marks, on the templates of ten families.

The templates are written for this test, after the families': what stands between turns, what a reply opens with, and what
becomes of thoughts. Each has the marks by which transformers makes its mask; without them it is the tokenizer's.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_model import tiny_tokenizer
from workbench import TrainConfig
from workbench.training import data
from workbench.training.rows.tokens import Rows

_EACH = "{% for m in messages %}"
_LAST = (
    "{% set last = namespace(question=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
)
_SPLIT = (  # a thought, from its field or from the content, and what is left of that
    "{% set said = m.content %}{% set thought = m.reasoning_content or '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
)
_ALTERNATING = "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
KEEPING = {
    "chatml": (
        _EACH + "{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama 3": (
        "{{ bos_token }}" + _EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}" + _EACH + _ALTERNATING + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<end_of_turn>\n{% endgeneration %}"
        "{% else %}{{ m.content | trim }}<end_of_turn>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}" + _EACH + _ALTERNATING + "{% if m.role == 'user' %} [INST] {{ m.content }} [/INST]{% else %}"
        "{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "phi 3": (
        _EACH + "{% if m.role == 'assistant' %}<|assistant|>\n{% generation %}{{ m.content }}<|end|>\n"
        "{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif %}{% endgeneration %}{% else %}"
        "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}  # fmt: skip
"""Families whose templates write a turn the same whatever follows."""
REWRITING = {
    "qwen 3": (
        _LAST + _EACH + _SPLIT + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% if loop.index0 > last.question %}"
        "{% if thought %}{% generation %}<think>\n{{ thought }}\n</think>\n\n{{ said }}<|im_end|>\n{% endgeneration %}"
        "{% else %}<think>\n\n</think>\n\n{% generation %}{{ said }}<|im_end|>\n{% endgeneration %}{% endif %}"
        "{% else %}{% generation %}{{ said }}<|im_end|>\n{% endgeneration %}{% endif %}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "qwen 3.5": (  # a reply opens with a thought
        _LAST + _EACH + _SPLIT + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% if loop.index0 > last.question %}"
        "{% if thought %}<think>\n{% generation %}{{ thought }}\n</think>\n\n{{ said }}<|im_end|>\n{% endgeneration %}"
        "{% else %}<think>\n\n</think>\n\n{% generation %}{{ said }}<|im_end|>\n{% endgeneration %}{% endif %}"
        "{% else %}{% generation %}{{ said }}<|im_end|>\n{% endgeneration %}{% endif %}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    "gpt-oss": (  # a thought has a channel and a field of its own, and the last turn another end
        _EACH + "{% if m.role == 'assistant' %}<|start|>assistant{% generation %}{% if m.thinking and loop.last %}"
        "<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}<|channel|>final<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endgeneration %}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
}  # fmt: skip
"""Families whose templates drop what a turn thought, or close it otherwise, once others follow."""
GLM = (  # an empty thought in each turn, or what was thought in those after the last question; no end of a turn
    "[gMASK]<sop>" + _LAST + _EACH + _SPLIT + "{% if m.role == 'assistant' %}<|assistant|>"
    "{% if thought and loop.index0 > last.question %}"
    "{% generation %}\n<think>{{ thought }}</think>\n{{ said }}{% endgeneration %}"
    "{% else %}\n<think></think>\n{% generation %}{{ said }}{% endgeneration %}{% endif %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)  # fmt: skip
R1 = (  # every thought is dropped, and a reply opens with one
    "{{ bos_token }}" + _EACH + "{% if m.role == 'assistant' %}<|Assistant|>"
    "{% generation %}{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)  # fmt: skip
PLAIN = ["a question?", "an answer", "another?", "and its answer", "a third?", "the last one"]
THINKING = ["a question?", ("a thought", "an answer"), "another?", ("", "without"), "a third?", ("hm", "the last one")]

Learnt = list[tuple[list[int], list[bool]]]


def chat(turns: list[Any]) -> list[dict[str, Any]]:
    """Messages; an answer with a thought has it in front, as models write it."""
    said = [turn if isinstance(turn, str) else f"<think>\n{turn[0]}\n</think>\n\n{turn[1]}" for turn in turns]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def of_field(messages: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    """The same with thoughts in a field of their own."""
    made = []
    for message in messages:
        thought, marked, answer = message["content"].partition("\n</think>\n\n")
        made.append({"role": message["role"], "content": answer if marked else message["content"]})
        if marked and (thought := thought.removeprefix("<think>\n")):
            made[-1][field] = thought
    return made


@functools.cache
def _tokenizer() -> Any:
    return tiny_tokenizer()


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(_tokenizer())
    tokenizer.chat_template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return tokenizer


def load(folder: Path, tokenizer: Any, messages: list[dict[str, Any]], **fields: Any) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n", "utf-8")
    return data.load(TrainConfig(dataset=str(path), **fields), tokenizer)


def learnt(rows: Rows) -> Learnt:
    return [(row.input_ids.tolist(), row.loss.tolist()) for row in rows.rows]


def marked(tokenizer: Any, template: str, messages: list[dict[str, Any]], last: bool = False) -> tuple[list[int], list[bool]]:
    """The tokens of a chat, and which transformers marks as the assistant's, or as its last answer's."""
    found = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    mask = [bool(bears) for bears in found["assistant_masks"]]
    if last:
        end = len(mask) - mask[::-1].index(True)
        begin = max((i + 1 for i in range(end) if not mask[i]), default=0)
        mask = [begin <= i < end for i in range(len(mask))]
    return found["input_ids"], mask


def each_turn(tokenizer: Any, template: str, messages: list[dict[str, Any]]) -> Learnt:
    """Every answer with what comes before it, as it is when it is the last."""
    ends = [i + 1 for i, message in enumerate(messages) if message["role"] == "assistant"]
    return [marked(tokenizer, template, messages[:end], last=True) for end in ends]


@pytest.mark.parametrize("turns", [2, 6])
@pytest.mark.parametrize("family", KEEPING)
def test_a_chat_is_one_row_where_turns_stay_as_they_are(family: str, turns: int, tmp_path: Path) -> None:
    tokenizer = with_template(KEEPING[family])
    messages = chat(PLAIN[:turns])
    assert learnt(load(tmp_path, tokenizer, messages)) == [marked(tokenizer, KEEPING[family], messages)]


@pytest.mark.parametrize("said", [PLAIN, THINKING], ids=["plain", "thinking"])
@pytest.mark.parametrize("family", REWRITING)
def test_each_turn_is_a_row_with_the_history_the_template_gives_it(family: str, said: list[Any], tmp_path: Path) -> None:
    tokenizer = with_template(REWRITING[family])
    field = "thinking" if family == "gpt-oss" else "reasoning_content"
    messages = of_field(chat(said), field)
    found = load(tmp_path, tokenizer, messages)
    assert learnt(found) == each_turn(tokenizer, REWRITING[family], messages)
    assert (found.total, found.single_turns) == (1, 2)
    inside = learnt(load(tmp_path, tokenizer, chat(said)))
    elsewhere = learnt(load(tmp_path, tokenizer, of_field(chat(said), "reasoning")))
    assert inside == elsewhere == learnt(found), "wherever the file has its thoughts"


@pytest.mark.parametrize("family", [*REWRITING, "glm"])
def test_thoughts_can_be_left_out_and_an_empty_one_is_never_learnt(family: str, tmp_path: Path) -> None:
    template = REWRITING.get(family, GLM)
    tokenizer = with_template(template)
    without = [turn if isinstance(turn, str) else turn[1] for turn in THINKING]
    dropped = load(tmp_path, tokenizer, chat(THINKING), thoughts="drop")
    assert learnt(dropped) == learnt(load(tmp_path, tokenizer, chat(without)))
    for row in dropped.rows:
        assert "think" not in tokenizer.decode(row.input_ids[row.loss])


def test_only_turns_that_lost_a_thought_are_rows_of_their_own(tmp_path: Path) -> None:
    tokenizer = with_template(GLM)
    plain, thinking = of_field(chat(PLAIN), ""), of_field(chat(THINKING), "reasoning_content")
    assert learnt(load(tmp_path, tokenizer, plain)) == [marked(tokenizer, GLM, plain)]
    alone, together = learnt(load(tmp_path, tokenizer, thinking))
    assert alone == marked(tokenizer, GLM, thinking[:2])
    ids, mask = marked(tokenizer, GLM, thinking)
    assert together[0] == ids
    first = mask.index(True)
    rest = mask.index(False, first)
    assert together[1] == [bears and i >= rest for i, bears in enumerate(mask)], "the first answer is the other row's"


def test_a_thought_that_the_template_drops_is_put_back_where_a_reply_opens_with_one(tmp_path: Path) -> None:
    tokenizer = with_template(R1)
    found = load(tmp_path, tokenizer, chat(["a question?", ("a thought", "an answer"), "another?", ("hm", "the last")]))
    bos, end = tokenizer.bos_token, tokenizer.eos_token
    history = f"{bos}<|User|>a question?<|Assistant|>"
    assert [tokenizer.decode(row.input_ids) for row in found.rows] == [
        f"{history}<think>\na thought\n</think>\n\nan answer{end}",
        f"{history}\n\nan answer{end}<|User|>another?<|Assistant|><think>\nhm\n</think>\n\nthe last{end}",
    ]
    assert [tokenizer.decode(row.input_ids[row.loss]) for row in found.rows] == [
        f"a thought\n</think>\n\nan answer{end}", f"hm\n</think>\n\nthe last{end}",
    ]  # fmt: skip
    plain = of_field(chat(PLAIN), "")
    assert learnt(load(tmp_path, tokenizer, plain)) == [marked(tokenizer, R1, plain)]


def test_a_thought_that_the_template_drops_for_good_is_counted_and_said(tmp_path: Path) -> None:
    tokenizer = with_template(R1.replace("<think>\n", ""))
    both = tmp_path / "rows.jsonl"
    lines = [{"messages": chat(THINKING[:2])}, {"messages": chat(PLAIN[:2])}]
    both.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = data.load(TrainConfig(dataset=str(both)), tokenizer)
    assert (len(found.rows), found.refused) == (1, 1)
    assert found.refusal is not None
    assert "leaves out the thought of message 2" in str(found.refusal)
