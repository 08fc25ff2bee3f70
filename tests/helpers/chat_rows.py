"""Messages of a conversation, and rows of the layout that Chatbot Arena publishes."""

import json

__all__ = ["battle", "reply", "user"]


def user(text, **fields):
    return {"role": "user", "content": text, **fields}


def reply(text):
    return {"role": "assistant", "content": text}


def battle(winner="model_a", prompt=("hi",), a=("A",), b=("B",)):
    turns = {"prompt": prompt, "response_a": a, "response_b": b}
    flags = {f"winner_{name}": int(name == winner) for name in ("model_a", "model_b", "tie")}
    return {name: json.dumps(value) for name, value in turns.items()} | flags
